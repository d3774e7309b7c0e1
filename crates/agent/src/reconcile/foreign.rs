//! Chains of others that drop what pods send, or what is sent to them. Nothing is changed there: what one
//! table drops no other can accept, so an operator must know.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use causeway_model::nft::foreign::{Dropping, STOPPED};
use causeway_types::Family;
use ipnet::IpNet;

use super::Core;
use crate::port::Port;

/// Time between two looks: a look costs a dump of all chains, and kube-proxy may have tens of thousands
/// that it changes all the time.
const PAUSE: Duration = Duration::from_secs(5);

/// What was found, and when to look again.
#[derive(Debug, Default)]
pub(super) struct Foreign {
    nets: Vec<IpNet>,
    not_before: Option<Instant>,
    due: Option<Instant>,
    /// A sentence for each such chain.
    pub(super) problems: Vec<String>,
}

impl Foreign {
    /// When the next look is due.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.due
    }

    fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|at| at <= now)
    }

    fn look_soon(&mut self, now: Instant) {
        let at = self.not_before.map_or(now, |at| at.max(now));
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }
}

impl<P: Port> Core<P> {
    /// Notes that tables of others may have changed since the last look.
    pub(crate) fn heed_foreign(&mut self, now: Instant) {
        if self.port.take_foreign_change() {
            self.foreign.look_soon(now);
        }
    }

    /// Looks, if there is a reason to and the last look is long enough ago. Packets of pods are known to be
    /// dropped where a chain accepts nothing, or what is another's alone; what a chain with other rules
    /// does only packets can tell, and `causeway doctor` names it.
    pub(super) fn look_at_foreign(&mut self, now: Instant) {
        self.heed_foreign(now);
        let file = self.node_file.iter();
        let nets: Vec<IpNet> = file.flat_map(|f| f.ranges()).map(|cidr| cidr.net()).collect();
        if nets != self.foreign.nets {
            self.foreign.nets = nets;
            self.foreign.look_soon(now);
        }
        if !self.foreign.is_due(now) {
            return;
        }
        self.foreign.due = None;
        self.foreign.not_before = Some(now + PAUSE);
        let families: BTreeSet<Family> =
            self.foreign.nets.iter().map(|net| Family::of(net.addr())).collect();
        let families: Vec<Family> = families.into_iter().collect();
        let found =
            if families.is_empty() { Ok(Vec::new()) } else { self.port.dropping(&families) };
        match found {
            Ok(chains) => {
                self.foreign.problems = problems(&chains, &self.foreign.nets);
            }
            Err(error) => {
                tracing::warn!("cannot look at the tables of other firewalls: {error}");
                self.foreign.look_soon(now);
            }
        }
    }
}

fn problems(chains: &[Dropping], nets: &[IpNet]) -> Vec<String> {
    let certain = chains.iter().filter(|chain| chain.all || chain.dockers_alone);
    let dropped = |chain: &Dropping| -> Vec<IpNet> {
        nets.iter().copied().filter(|net| !chain.lets_pass(*net)).collect()
    };
    let pairs = certain.map(|chain| (chain, dropped(chain))).filter(|(_, nets)| !nets.is_empty());
    let text = |(chain, nets): (&Dropping, Vec<IpNet>)| {
        format!(
            "{STOPPED}: {}, and what one table drops no other can accept; run: {}",
            chain.what(),
            chain.commands(&nets).join("; ")
        )
    };
    pairs.map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use causeway_model::nft::foreign::{Accepted, Layer, Place};

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn chain(all: bool) -> Dropping {
        Dropping {
            place: Place::new(Layer::Inet, "filter", "forward"),
            all,
            dockers_alone: all,
            accepted: Vec::new(),
            named: Vec::new(),
            leads_to: Vec::new(),
        }
    }

    #[test]
    fn what_is_certain_is_told_with_the_way_out() {
        let nets = [net("10.244.1.0/24"), net("fd00::/64")];
        let told = problems(&[chain(true), chain(false)], &nets);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("chain forward of table inet filter has policy drop"), "{told:?}");
        let command = "nft insert rule inet filter forward ip6 daddr fd00::/64 accept";
        assert!(told[0].ends_with(command), "{told:?}");
        let both = |text| [true, false].map(|source| Accepted { net: net(text), source });
        let mut open = chain(true);
        open.accepted.extend(both("10.244.0.0/16"));
        let told = problems(&[open.clone()], &nets);
        assert!(told[0].contains("fd00::/64") && !told[0].contains("10.244.1.0"), "{told:?}");
        open.accepted.extend(both("fd00::/16"));
        assert!(problems(&[open], &nets).is_empty());
    }

    #[test]
    fn changes_in_a_row_cost_one_look() {
        let start = Instant::now();
        let mut foreign = Foreign::default();
        foreign.look_soon(start);
        assert!(foreign.is_due(start));
        (foreign.due, foreign.not_before) = (None, Some(start + PAUSE));
        foreign.look_soon(start + PAUSE / 2);
        foreign.look_soon(start + PAUSE / 2);
        assert_eq!(foreign.next_wake(), Some(start + PAUSE));
        assert!(!foreign.is_due(start + PAUSE / 2) && foreign.is_due(start + PAUSE));
    }
}
