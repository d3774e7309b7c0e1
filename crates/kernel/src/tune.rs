//! Attributes of an interface that are changed and put back: MAC, MTU, promiscuity, length of the
//! send queue.

use causeway_types::{IfName, Mac};

use crate::error::{Error, Refusal};
use crate::handle::Handle;
use crate::rtnl::{link, read};
use crate::sock::{Reply, Request, attributes};

/// `struct ifinfomsg`.
const HEADER: usize = 16;

/// Attributes of an interface: all of them as the kernel tells them, or those to set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Ethernet address.
    pub mac: Option<Mac>,
    /// Bytes.
    pub mtu: Option<u32>,
    /// Takes in every frame (`IFF_PROMISC`).
    pub promisc: Option<bool>,
    /// Takes in every multicast frame (`IFF_ALLMULTI`).
    pub allmulti: Option<bool>,
    /// Packets that the send queue holds.
    pub tx_queue_len: Option<u32>,
}

impl Attributes {
    /// Those of these that another has otherwise. A MAC that is set to what it is makes the kernel
    /// forget its neighbours all the same, permanent ones included.
    #[must_use]
    pub fn unlike(&self, have: &Attributes) -> Attributes {
        fn unlike<T: PartialEq>(want: Option<T>, have: Option<T>) -> Option<T> {
            if want == have { None } else { want }
        }
        Attributes {
            mac: unlike(self.mac, have.mac),
            mtu: unlike(self.mtu, have.mtu),
            promisc: unlike(self.promisc, have.promisc),
            allmulti: unlike(self.allmulti, have.allmulti),
            tx_queue_len: unlike(self.tx_queue_len, have.tx_queue_len),
        }
    }
}

impl Handle {
    /// The attributes of an interface; `None` when there is none of this name.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn attributes(&mut self, name: &IfName) -> Result<Option<Attributes>, Error> {
        self.route.get("look up an interface", link::get_by_name(name), decode)
    }

    /// Sets those that are given, all at once: an interface that is refused one of them may have
    /// some of the others.
    ///
    /// # Errors
    /// When there is no such interface, or the kernel refuses.
    pub fn set_attributes(&mut self, name: &IfName, to: &Attributes) -> Result<(), Error> {
        let index = self.index_of(name)?;
        let outcomes = self.route.transact(vec![encode(index, to)])?;
        let refused = |e: Refusal| Error::refused(format!("set up interface {name}"), e);
        outcomes.into_iter().try_for_each(|outcome| outcome.map_err(refused))
    }

    /// The index of an interface that must be there.
    pub(crate) fn index_of(&mut self, name: &IfName) -> Result<u32, Error> {
        self.link_index(name)?.ok_or_else(|| Error::NoLink { name: name.to_string() })
    }
}

fn encode(index: u32, to: &Attributes) -> Request {
    let flags = [(to.promisc, libc::IFF_PROMISC), (to.allmulti, libc::IFF_ALLMULTI)];
    let (mut set, mut mask) = (0, 0);
    for (on, flag) in flags {
        if let Some(on) = on {
            mask |= flag as u32;
            set |= if on { flag as u32 } else { 0 };
        }
    }
    let mut body = vec![0; 4];
    for word in [index, set, mask] {
        body.extend_from_slice(&word.to_ne_bytes());
    }
    if let Some(mac) = to.mac {
        read::put(&mut body, libc::IFLA_ADDRESS, &mac.0);
    }
    if let Some(mtu) = to.mtu {
        read::put(&mut body, libc::IFLA_MTU, &mtu.to_ne_bytes());
    }
    if let Some(len) = to.tx_queue_len {
        read::put(&mut body, libc::IFLA_TXQLEN, &len.to_ne_bytes());
    }
    Request::new(libc::RTM_NEWLINK, 0, body)
}

pub(crate) fn decode(reply: Reply<'_>) -> Option<Attributes> {
    let header = reply.body.get(..HEADER).filter(|_| reply.kind == libc::RTM_NEWLINK)?;
    let flags = read::number_at(header, 8)?;
    let mut found = Attributes {
        promisc: Some(flags & libc::IFF_PROMISC as u32 != 0),
        allmulti: Some(flags & libc::IFF_ALLMULTI as u32 != 0),
        ..Attributes::default()
    };
    for (kind, value) in attributes(&reply.body[HEADER..]) {
        match kind {
            libc::IFLA_ADDRESS => found.mac = read::mac(value),
            libc::IFLA_MTU => found.mtu = read::number(value),
            libc::IFLA_TXQLEN => found.tx_queue_len = read::number(value),
            _ => {}
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let all = Attributes {
            mac: Some(Mac::derived("x")),
            mtu: Some(1400),
            promisc: Some(true),
            allmulti: Some(false),
            tx_queue_len: Some(500),
        };
        let request = encode(7, &all);
        let reply = Reply { kind: request.kind, flags: 0, seq: 0, port: 0, body: &request.body };
        assert_eq!(decode(reply), Some(all));
        for len in 0..request.body.len() {
            decode(Reply {
                kind: request.kind,
                flags: 0,
                seq: 0,
                port: 0,
                body: &request.body[..len],
            });
        }
    }
}
