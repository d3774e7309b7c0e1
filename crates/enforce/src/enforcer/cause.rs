//! Why something is dropped, in the terms of policies.

use std::net::IpAddr;

use causeway_policy::judge::Decision;
use causeway_policy::{Direction, Party, PodName, Transport, Who};

use super::{Done, Enforcer};

/// Why a pod's end of a connection is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// By its policies, or by none of them: they may have changed since.
    Policies(Decision),
    /// Nothing is known of the pod, and policies may apply to it: nothing passes.
    Shut,
}

impl Enforcer {
    /// Who has an address. Of the pods that are attached here all their addresses are known.
    #[must_use]
    pub fn party(&self, address: IpAddr) -> Party {
        match self.world.holder(address) {
            Some(name) => Party { who: Who::Pod(name.clone()), address },
            None => self.world.at(address),
        }
    }

    /// What becomes of a connection at the end at which policies of a direction are, as the table is to be
    /// now; `None` where no pod that is attached here has that end.
    #[must_use]
    pub fn cause(
        &self,
        direction: Direction,
        client: IpAddr,
        server: IpAddr,
        transport: Transport,
    ) -> Option<(PodName, Cause)> {
        let (own, peer) = match direction {
            Direction::Ingress => (server, client),
            Direction::Egress => (client, server),
        };
        let name = self.world.holder(own)?;
        let endpoint = self.endpoints.get(name)?;
        if endpoint.done.contains(&Done::Shut) {
            return Some((name.clone(), Cause::Shut));
        }
        let subject = self.world.subject(self.local.get(name)?);
        let decision = subject.decide(direction, &self.party(peer), transport);
        Some((name.clone(), Cause::Policies(decision)))
    }
}
