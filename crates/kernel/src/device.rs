//! Devices that others own: what the model leaves out of a link, macvlan devices on top of one, and
//! moving one between namespaces.

use std::os::fd::AsRawFd;

use causeway_model::{Link, LinkKind};
use causeway_types::{IfName, Mac, Mtu};
use netlink_packet_core::DefaultNla;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoMacVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, MacVlanMode,
};

use crate::error::{Error, Refusal};
use crate::handle::Handle;
use crate::netns::NetNs;
use crate::rtnl::{link, read, request};
use crate::sock::{CREATE, EXCL, Reply, Request, attributes};

/// `struct ifinfomsg`.
const HEADER: usize = 16;
/// `IFLA_IFALIAS`.
const ALIAS: u16 = 20;
/// `IFLA_MACVLAN_MODE`.
const MACVLAN_MODE: u16 = 1;
/// `IFLA_MACVLAN_BC_QUEUE_LEN`: as asked for by this device; the longest of all counts.
const MACVLAN_BC_QUEUE_LEN: u16 = 7;
/// `IFLA_ALT_IFNAME`: a name that may be longer than 15 bytes.
const ALT_NAME: u16 = 53;
/// The longest name that is not only an alternative one.
const NAME: usize = 15;

/// A network device as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its index in its namespace.
    pub index: u32,
    /// What the model knows of it, without its master.
    pub link: Link,
    /// Packets pass (`IFF_RUNNING`).
    pub running: bool,
    /// The text that somebody gave it (`ip link set … alias`), empty if none.
    pub alias: String,
    /// The index of the device below, in whatever namespace that is.
    pub lower: Option<u32>,
    /// What makes it a macvlan device, if it is one.
    pub macvlan: Option<Macvlan>,
}

/// The properties of a macvlan device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Macvlan {
    /// Who hears whom.
    pub mode: Mode,
    /// Broadcasts that may wait at the device below; `None`: the kernel's default (1000).
    pub bc_queue_len: Option<u32>,
}

/// Modes of macvlan devices (`MACVLAN_MODE_*`, `linux/if_link.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Mode {
    /// Devices on the same one below never hear each other.
    Private = 1,
    /// They hear each other by way of a switch that sends frames back.
    Vepa = 2,
    /// They hear each other directly.
    Bridge = 4,
    /// The one device takes over the one below, its address included, and makes it promiscuous.
    Passthru = 8,
}

impl Mode {
    /// All modes, with their names in `ip link`.
    pub const ALL: [(Mode, &'static str); 4] = [
        (Mode::Bridge, "bridge"),
        (Mode::Private, "private"),
        (Mode::Vepa, "vepa"),
        (Mode::Passthru, "passthru"),
    ];
}

/// A macvlan device to be made.
#[derive(Debug)]
pub struct NewMacvlan<'a> {
    /// Its name.
    pub name: &'a IfName,
    /// The index of the device below, in the handle's namespace.
    pub lower: u32,
    /// The namespace that it is born in.
    pub netns: &'a NetNs,
    /// Its address; `None`: the kernel's choice. In mode passthru always that of the device below.
    pub mac: Option<Mac>,
    /// Its MTU, at most that of the device below; `None`: that of the device below.
    pub mtu: Option<Mtu>,
    /// The rest.
    pub properties: Macvlan,
}

impl Device {
    /// True for a device through which traffic can be sent (`ifb`).
    pub fn is_ifb(&self) -> bool {
        self.link.kind == LinkKind::Other("ifb".to_owned())
    }
}

impl Handle {
    /// A device by its name or an alternative name.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn device(&mut self, name: &str) -> Result<Option<Device>, Error> {
        let mut message = LinkMessage::default();
        let attribute = match name.len() {
            0..=NAME => LinkAttribute::IfName(name.to_owned()),
            _ => text(ALT_NAME, name, true),
        };
        message.attributes.push(attribute);
        let asked = request(libc::RTM_GETLINK, &message, 0);
        self.route.get("look up an interface", asked, decode)
    }

    /// All devices, in the order of their indexes.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn devices(&mut self) -> Result<Vec<Device>, Error> {
        let mut all = self.route.dump("read links", link::dump(), decode)?;
        all.sort_by_key(|d| d.index);
        Ok(all)
    }

    /// Makes a macvlan device in its namespace, down, with everything in place.
    ///
    /// # Errors
    /// The kernel's refusal; nothing is made then.
    pub fn make_macvlan(&mut self, new: &NewMacvlan<'_>) -> Result<(), Refusal> {
        let Macvlan { mode, bc_queue_len } = new.properties;
        let mode = InfoMacVlan::Mode(MacVlanMode::from(mode as u32));
        let queue = bc_queue_len.map(|len| {
            InfoMacVlan::Other(DefaultNla::new(MACVLAN_BC_QUEUE_LEN, len.to_ne_bytes().to_vec()))
        });
        let data = [mode].into_iter().chain(queue).collect();
        let mut message = LinkMessage::default();
        let attributes = &mut message.attributes;
        attributes.push(LinkAttribute::IfName(new.name.to_string()));
        attributes.push(LinkAttribute::Link(new.lower));
        attributes.push(LinkAttribute::NetNsFd(new.netns.as_raw_fd()));
        attributes.extend(new.mac.map(|m| LinkAttribute::Address(m.0.to_vec())));
        attributes.extend(new.mtu.map(|m| LinkAttribute::Mtu(m.get())));
        attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::MacVlan),
            LinkInfo::Data(InfoData::MacVlan(data)),
        ]));
        self.all(vec![request(libc::RTM_NEWLINK, &message, CREATE | EXCL)])
    }

    /// Gives a device of this namespace to another one, under another name and with an alias. The
    /// kernel sets it down and takes its addresses from it.
    ///
    /// On its way the device has the name `between` here, so that one which arrives and cannot have
    /// its new name, because it was taken that moment, is found by that.
    ///
    /// # Errors
    /// The kernel's first refusal.
    pub fn give_device(
        &mut self,
        index: u32,
        to: &NetNs,
        name: &IfName,
        alias: &str,
        between: Option<&IfName>,
    ) -> Result<(), Refusal> {
        let mut requests = vec![alias_of(index, alias)];
        if let Some(between) = between {
            // Older kernels rename only what is down.
            let mut down = at(index);
            down.header.change_mask = LinkFlags::Up;
            requests.extend([down, named(index, between)]);
        }
        let mut go = named(index, name);
        go.attributes.push(LinkAttribute::NetNsFd(to.as_raw_fd()));
        requests.push(go);
        let requests = requests.into_iter().map(|m| request(libc::RTM_NEWLINK, &m, 0));
        self.all(requests.collect())
    }

    /// Gives a device another name, for which it must be down on older kernels: it is set down.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn rename_device(&mut self, index: u32, name: &IfName) -> Result<(), Refusal> {
        let mut down = at(index);
        down.header.change_mask = LinkFlags::Up;
        let both = [down, named(index, name)];
        self.all(both.map(|m| request(libc::RTM_NEWLINK, &m, 0)).to_vec())
    }

    /// Gives a device an alias; an empty one takes it away.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn set_device_alias(&mut self, index: u32, alias: &str) -> Result<(), Refusal> {
        self.all(vec![request(libc::RTM_NEWLINK, &alias_of(index, alias), 0)])
    }

    /// Sends requests together; the first refusal of any counts.
    fn all(&mut self, requests: Vec<Request>) -> Result<(), Refusal> {
        let lost = |e: Error| Refusal {
            errno: e.errno().unwrap_or(libc::EIO),
            message: Some(e.to_string()),
        };
        self.route.transact(requests).map_err(lost)?.into_iter().collect()
    }
}

fn at(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn named(index: u32, name: &IfName) -> LinkMessage {
    let mut message = at(index);
    message.attributes.push(LinkAttribute::IfName(name.to_string()));
    message
}

fn alias_of(index: u32, alias: &str) -> LinkMessage {
    let mut message = at(index);
    message.attributes.push(text(ALIAS, alias, false));
    message
}

/// Text with or without a closing zero; an alias has none, so that an empty one is none.
fn text(kind: u16, text: &str, zero: bool) -> LinkAttribute {
    let mut value = text.as_bytes().to_vec();
    value.extend(zero.then_some(0));
    LinkAttribute::Other(DefaultNla::new(kind, value))
}

pub(crate) fn decode(reply: Reply<'_>) -> Option<Device> {
    let seen = link::decode(reply)?;
    let mut alias = String::new();
    let mut macvlan = None;
    for (kind, value) in attributes(reply.body.get(HEADER..)?) {
        match kind {
            // Any bytes may be in it.
            ALIAS => alias = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned(),
            libc::IFLA_LINKINFO => macvlan = decode_macvlan(value),
            _ => {}
        }
    }
    let (index, running, lower) = (seen.index, seen.running, seen.lower);
    Some(Device { index, link: seen.link, running, alias, lower, macvlan })
}

/// `None` also for a mode that is none of ours (`source`).
fn decode_macvlan(info: &[u8]) -> Option<Macvlan> {
    let part = |of: u16| attributes(info).find(|(kind, _)| *kind == of).map(|(_, value)| value);
    if read::text(part(libc::IFLA_INFO_KIND)?) != Some("macvlan") {
        return None;
    }
    let data = part(libc::IFLA_INFO_DATA)?;
    let (mut mode, mut bc_queue_len) = (None, None);
    for (kind, value) in attributes(data) {
        match kind {
            MACVLAN_MODE => mode = read::number(value),
            MACVLAN_BC_QUEUE_LEN => bc_queue_len = read::number(value),
            _ => {}
        }
    }
    let (mode, _) = Mode::ALL.into_iter().find(|(m, _)| Some(*m as u32) == mode)?;
    Some(Macvlan { mode, bc_queue_len })
}
