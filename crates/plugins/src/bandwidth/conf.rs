//! The configuration of type `bandwidth`.

use causeway_cni_spec::CniError;
use causeway_kernel::tc::{End, Limit, Selection};
use ipnet::IpNet;

use crate::call::Call;

/// The most that a burst may be, in bytes: the kernel's parameter has 32 bits.
const LARGEST_BURST: u64 = u32::MAX as u64;
/// Bytes of an Ethernet header with a VLAN tag, beside the MTU.
const ETHERNET: u32 = 18;

/// Limits of an attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// Of what is sent towards the pod.
    pub(super) towards: Option<Limit>,
    /// Of what the pod sends.
    pub(super) from: Option<Limit>,
    /// The networks at the other end for which they are, or are not; empty: they are for all.
    pub(super) subnets: Vec<IpNet>,
    /// They are for these networks alone.
    pub(super) only: bool,
}

struct Raw {
    ingress_rate: Option<u64>,
    ingress_burst: Option<u64>,
    egress_rate: Option<u64>,
    egress_burst: Option<u64>,
    unshaped_subnets: Option<Vec<IpNet>>,
    shaped_subnets: Option<Vec<IpNet>>,
}

impl Limits {
    /// Those of the configuration, or else of the `bandwidth` capability, as the reference
    /// chooses.
    ///
    /// # Errors
    /// Code 6 for wrong types, code 7 for what makes no sense.
    pub(super) fn of(call: &Call) -> Result<Self, CniError> {
        let raw = Raw {
            ingress_rate: call.conf.key("ingressRate")?,
            ingress_burst: call.conf.key("ingressBurst")?,
            egress_rate: call.conf.key("egressRate")?,
            egress_burst: call.conf.key("egressBurst")?,
            unshaped_subnets: call.conf.key("unshapedSubnets")?,
            shaped_subnets: call.conf.key("shapedSubnets")?,
        };
        if raw.says_something() {
            return raw.check("");
        }
        let Some(asked) = call.conf.runtime_config.bandwidth.clone() else {
            return Ok(Self::default());
        };
        let raw = Raw {
            ingress_rate: Some(asked.ingress_rate),
            ingress_burst: Some(asked.ingress_burst),
            egress_rate: Some(asked.egress_rate),
            egress_burst: Some(asked.egress_burst),
            unshaped_subnets: Some(asked.unshaped_subnets),
            shaped_subnets: Some(asked.shaped_subnets),
        };
        raw.check("runtimeConfig.bandwidth.")
    }

    /// Nothing is limited.
    pub(super) fn is_none(&self) -> bool {
        self.towards.is_none() && self.from.is_none()
    }

    /// What a limit is for. The reference compares the destination both ways, which towards the
    /// pod is the pod itself; here it is always the other end.
    pub(super) fn selection(&self, end: End) -> Option<Selection<'_>> {
        let subnets = self.subnets.as_slice();
        (!subnets.is_empty()).then_some(Selection { subnets, end, limited: self.only })
    }
}

/// A limit for an interface of an MTU. A bucket in which no whole packet fits would let none pass,
/// so it holds at least one.
pub(super) fn whole_packets(limit: Limit, mtu: u32) -> Limit {
    Limit { burst: limit.burst.max(mtu.saturating_add(ETHERNET)), ..limit }
}

impl Raw {
    fn says_something(&self) -> bool {
        let numbers = [self.ingress_rate, self.ingress_burst, self.egress_rate, self.egress_burst];
        numbers.iter().any(Option::is_some)
            || self.unshaped_subnets.is_some()
            || self.shaped_subnets.is_some()
    }

    fn check(self, at: &str) -> Result<Limits, CniError> {
        let towards = limit(at, "ingress", self.ingress_rate, self.ingress_burst)?;
        let from = limit(at, "egress", self.egress_rate, self.egress_burst)?;
        let unshaped = self.unshaped_subnets.unwrap_or_default();
        let shaped = self.shaped_subnets.unwrap_or_default();
        if !unshaped.is_empty() && !shaped.is_empty() {
            return Err(CniError::invalid_config(format!(
                "keys \"{at}unshapedSubnets\" and \"{at}shapedSubnets\" are both set: a limit is \
                 either for some networks or for all but some; remove one of the two"
            )));
        }
        let only = !shaped.is_empty();
        let mut subnets: Vec<IpNet> = if only { shaped } else { unshaped };
        subnets.iter_mut().for_each(|net| *net = net.trunc());
        subnets.sort();
        subnets.dedup();
        Ok(Limits { towards, from, subnets, only })
    }
}

/// Bits to bytes, both or none.
fn limit(
    at: &str,
    way: &str,
    rate: Option<u64>,
    burst: Option<u64>,
) -> Result<Option<Limit>, CniError> {
    let bad = |key: &str, value: u64, why: &str| {
        Err(CniError::invalid_config(format!("key \"{at}{way}{key}\" is {value}: {why}")))
    };
    match (rate.unwrap_or(0), burst.unwrap_or(0)) {
        (0, 0) => Ok(None),
        (rate, 0) => bad(
            "Rate",
            rate,
            &format!("if rate is set, burst must also be set: add \"{way}Burst\", in bits"),
        ),
        (0, burst) => bad(
            "Burst",
            burst,
            &format!(
                "if burst is set, rate must also be set: add \"{way}Rate\", in bits per second"
            ),
        ),
        (rate @ 1..8, _) => bad("Rate", rate, "must be at least 8 bits (one byte) per second"),
        (_, burst @ 1..8) => bad("Burst", burst, "must be at least 8 bits (one byte)"),
        (_, burst) if burst / 8 >= LARGEST_BURST => {
            bad("Burst", burst, "burst cannot be more than 4 GB (34359738352 bits)")
        }
        (rate, burst) => Ok(Some(Limit { rate: rate / 8, burst: (burst / 8) as u32 })),
    }
}
