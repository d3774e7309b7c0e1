//! Traffic control: limits of rate on interfaces, and devices that what comes in is sent through so
//! that it can be limited as well.
//!
//! A limit is a token bucket (`tbf`) as the root of an interface's queue; where it is for some
//! subnets only, a class of `htb` with the same bucket, beside which the rest goes unlimited. Rates
//! and bursts are given in bytes, which the kernel takes as they are (`TCA_TBF_BURST`,
//! `TCA_TBF_RATE64`): no rate table and no clock of the packet scheduler is needed.

mod wire;

use causeway_types::IfName;
use ipnet::IpNet;

use crate::error::{Error, Refusal};
use crate::handle::Handle;
use crate::rtnl::{link, read};
use crate::sock::{Reply, Request};

pub use wire::Root;
use wire::{Filter, Placed};

/// How long a packet may wait in a queue, in milliseconds. The same as the reference plugins.
pub const LATENCY_MS: u64 = 25;

/// In ticks, rounded up.
const MICROSECOND: u128 = 16;

/// A limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bytes per second, more than 0.
    pub rate: u64,
    /// Bytes that may pass at once, more than 0.
    pub burst: u32,
}

/// The address by which packets are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Where they come from.
    Source,
    /// Where they go.
    Destination,
}

/// Some of the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection<'a> {
    /// Networks.
    pub subnets: &'a [IpNet],
    /// Which address is to be in one of them.
    pub end: End,
    /// The limit is for these packets; else for all others.
    pub limited: bool,
}

impl Limit {
    /// Bytes that a queue holds: what passes within the latency, and the burst.
    fn queue(self) -> u32 {
        let waiting = u128::from(self.rate) * u128::from(LATENCY_MS) / 1000;
        u32::try_from(waiting + u128::from(self.burst)).unwrap_or(u32::MAX)
    }

    /// The time that a burst takes, in the ticks of 64 ns in which netlink tells it.
    fn ticks(self) -> u128 {
        (u128::from(self.burst) * 1_000_000_000 / u128::from(self.rate.max(1))) >> 6
    }

    /// True when what the kernel tells is this limit. It calculates a burst's time by a
    /// multiplication that is off a little, and tells the low 32 bits of it; to a class it can be
    /// given in 32 bits alone. The reference plugins calculate it in microseconds.
    pub fn is(self, root: &Root) -> bool {
        let exact = self.ticks();
        let want = if root.kind == wire::HTB { wire::ticks(self) } else { exact as u32 };
        let far = (root.buffer.wrapping_sub(want) as i32).unsigned_abs();
        root.rate == self.rate && u128::from(far) <= MICROSECOND + (exact >> 16)
    }
}

impl Handle {
    /// Limits what an interface sends, all of it or a selection. Its root queue must be the
    /// kernel's own.
    ///
    /// # Errors
    /// When there is no such interface, it has a root queue, or the kernel refuses.
    pub fn set_limit(
        &mut self,
        dev: &IfName,
        limit: Limit,
        selection: Option<&Selection<'_>>,
    ) -> Result<(), Error> {
        let index = self.index_of(dev)?;
        let requests = match selection {
            None => vec![wire::tbf(index, limit)],
            Some(selection) => wire::htb(index, limit, selection),
        };
        self.control(&format!("limit the rate of interface {dev}"), requests)
    }

    /// The root queue of an interface; `None` for the kernel's own, which has no handle.
    ///
    /// # Errors
    /// When there is no such interface, or the kernel cannot be asked.
    pub fn root_queue(&mut self, dev: &IfName) -> Result<Option<Root>, Error> {
        let index = self.index_of(dev)?;
        let what = "read the queues of an interface";
        let all = self.route.dump(what, wire::get_qdiscs(index), |r| wire::root(r, index))?;
        let Some(mut root) = all.into_iter().next() else { return Ok(None) };
        if root.kind == wire::HTB {
            let read = |r: Reply<'_>| wire::limited_class(r, index);
            let class = self.route.dump(what, wire::get_classes(index), read)?;
            if let Some((rate, buffer)) = class.into_iter().next() {
                (root.rate, root.buffer) = (rate, buffer);
            }
        }
        Ok(Some(root))
    }

    /// Removes the root queue of an interface, with its classes and filters; one that is gone is
    /// fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_root_queue(&mut self, dev: &IfName) -> Result<(), Error> {
        let Some(index) = self.link_index(dev)? else { return Ok(()) };
        gone_is_fine(self.control("remove a root queue", vec![wire::remove_root(index)]))
    }

    /// True when the filters at a root queue select what a selection says, and nothing else.
    ///
    /// # Errors
    /// When there is no such interface, or the kernel cannot be asked.
    pub fn selects(&mut self, dev: &IfName, selection: &Selection<'_>) -> Result<bool, Error> {
        let found = self.filters(dev, wire::ROOT)?;
        let wanted = wire::filters(selection);
        let is_there = |wanted: &Filter| found.iter().any(|f| f.filter == *wanted);
        Ok(found.len() == wanted.len() && wanted.iter().all(is_there))
    }

    /// Makes a device through which traffic can be sent (`ifb`). It is down.
    ///
    /// # Errors
    /// When there is an interface of the name, or the kernel refuses.
    pub fn create_ifb(&mut self, name: &IfName, mtu: u32, alias: &str) -> Result<(), Error> {
        let what = format!("make interface {name}");
        self.control(&what, wire::create_ifb(name, mtu, alias).to_vec())
    }

    /// Sets an interface up.
    ///
    /// # Errors
    /// When there is none, or the kernel refuses.
    pub fn set_up(&mut self, name: &IfName) -> Result<(), Error> {
        let index = self.index_of(name)?;
        self.control(&format!("set interface {name} up"), vec![wire::set_up(index)])
    }

    /// Removes an interface by its index; one that is gone is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_link(&mut self, index: u32) -> Result<(), Error> {
        gone_is_fine(self.control("remove an interface", vec![link::remove_index(index)]))
    }

    /// Sends all that comes in by an interface through another one, from which it comes back as if
    /// nothing had been.
    ///
    /// # Errors
    /// When one of them is not there, or the kernel refuses.
    pub fn redirect(&mut self, dev: &IfName, through: &IfName) -> Result<(), Error> {
        let (index, through) = (self.index_of(dev)?, self.index_of(through)?);
        let what = format!("redirect what comes in by interface {dev}");
        match self.control(&what, vec![wire::ingress(index)]) {
            // One that others made serves as well.
            Err(Error::Refused { refusal, .. }) if refusal.errno == libc::EEXIST => {}
            other => other?,
        }
        self.control(&what, vec![wire::redirect(index, through)])
    }

    /// True when an interface's traffic is sent through another one.
    ///
    /// # Errors
    /// When one of them is not there, or the kernel cannot be asked.
    pub fn redirects(&mut self, dev: &IfName, through: &IfName) -> Result<bool, Error> {
        let through = self.index_of(through)?;
        let filters = self.filters(dev, wire::INGRESS)?;
        Ok(filters.iter().any(|f| f.filter.through == Some(through)))
    }

    /// Takes back [`Handle::redirect`] to the device of an index, and to devices that are gone. What
    /// is gone is fine, and what others put there stays.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_redirect(&mut self, dev: &IfName, through: u32) -> Result<(), Error> {
        let Some(index) = self.link_index(dev)? else { return Ok(()) };
        for found in self.filters(dev, wire::INGRESS)? {
            if found.filter.through.is_some_and(|to| to == through || to == 0) {
                let request = wire::remove_filter(index, &found);
                gone_is_fine(self.control("remove a redirect", vec![request]))?;
            }
        }
        let what = "read the queues of an interface";
        let ours =
            self.route.dump(what, wire::get_qdiscs(index), |r| wire::is_ingress(r, index))?;
        if ours.is_empty() || !self.filters(dev, wire::INGRESS)?.is_empty() {
            return Ok(());
        }
        gone_is_fine(self.control("remove an ingress queue", vec![wire::remove_ingress(index)]))
    }

    fn filters(&mut self, dev: &IfName, parent: u32) -> Result<Vec<Placed>, Error> {
        let index = self.index_of(dev)?;
        let request = wire::get_filters(index, parent);
        match self.route.dump("read the filters of an interface", request, wire::filter) {
            // Without a queue there are no filters.
            Err(Error::Refused { refusal, .. })
                if refusal.is_gone() || refusal.errno == libc::EINVAL =>
            {
                Ok(Vec::new())
            }
            other => other,
        }
    }

    fn control(&mut self, what: &str, requests: Vec<Request>) -> Result<(), Error> {
        let refused = |e: Refusal| Error::refused(what, hint(e));
        let outcomes = self.route.transact(requests)?;
        outcomes.into_iter().try_for_each(|outcome| outcome.map_err(refused))
    }
}

/// What a kernel says that was built without something of it.
fn hint(mut refusal: Refusal) -> Refusal {
    let lacks = [libc::ENOENT, libc::EOPNOTSUPP].contains(&refusal.errno);
    if lacks && refusal.message.as_deref().is_none_or(|m| m.contains("unknown")) {
        let had = refusal.message.take().unwrap_or_else(|| "not supported".to_owned());
        refusal.message = Some(format!(
            "{had}: the kernel needs modules ifb, sch_tbf, sch_htb, sch_ingress, cls_u32, act_mirred"
        ));
    }
    refusal
}

/// What the kernel says of queues and filters that are not there, besides the usual.
fn gone_is_fine(outcome: Result<(), Error>) -> Result<(), Error> {
    match outcome {
        Err(Error::Refused { refusal, .. })
            if refusal.is_gone() || refusal.errno == libc::EINVAL =>
        {
            Ok(())
        }
        other => other,
    }
}

/// A number of 64 bits in the machine's byte order.
fn number64(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_ne_bytes)
}

/// Text of an attribute.
fn text(value: &[u8]) -> String {
    read::text(value).unwrap_or_default().to_owned()
}

/// All that is asked of an interface.
#[cfg(test)]
pub(crate) fn requests(index: u32) -> Vec<Request> {
    let filters = [wire::ROOT, wire::INGRESS].map(|parent| wire::get_filters(index, parent));
    [wire::get_qdiscs(index), wire::get_classes(index)].into_iter().chain(filters).collect()
}

/// True when one of the readers takes a message.
#[cfg(test)]
pub(crate) fn decode(reply: Reply<'_>) -> bool {
    let index = reply.body.get(4..).and_then(|b| b.first_chunk().copied());
    let index = u32::from_ne_bytes(index.unwrap_or_default());
    let took = [
        crate::device::decode(reply).is_some(),
        wire::root(reply, index).is_some(),
        wire::limited_class(reply, index).is_some(),
        wire::is_ingress(reply, index).is_some(),
        wire::filter(reply).is_some(),
    ];
    took.contains(&true)
}
