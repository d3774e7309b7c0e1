//! Pods that come: what is done about them at once, and what in a moment.

use std::net::IpAddr;

use causeway_policy::{Pod, PodName, Who};

use super::{Change, Done, Enforcer, Touched};

impl Enforcer {
    /// As [`Enforcer::change`], but where pods were attached last of all, at addresses that nobody else had, this is
    /// about what they are under alone: that others may now send to them, and they to others of this node, is left
    /// for [`Enforcer::settle`]. Until then nothing passes that is not to: NetworkPolicies allow to pods what they
    /// allow to whoever has an address, and more. Where there is a ClusterNetworkPolicy, which may deny pods
    /// something, nothing is left.
    ///
    /// Nor are connections judged anew at once for such pods: whatever the kernel has to free for that keeps the sockets
    /// of their plugins from being closed for some ten milliseconds. What the kernel remembers of their addresses is of
    /// before they had policies, or interfaces; [`Enforcer::forget_all`] has to follow in a moment ([`Enforcer::owes`]).
    /// Where another pod has had an address since connections were last judged anew, it is done at once.
    pub fn change_first(&mut self, mut changes: Vec<Change>) {
        let come = |change: &Change| matches!(change, Change::Endpoint(_, Some(_)));
        let others = changes.iter().rposition(|change| !come(change)).map_or(0, |at| at + 1);
        let come = changes.split_off(others);
        if !changes.is_empty() {
            self.change(changes);
        }
        let mut touched = Touched::default();
        let mut all_new = true;
        for change in come {
            if let Change::Endpoint(name, Some(addresses)) = &change {
                let own = |ip: &IpAddr| {
                    let said = match self.world.at(*ip).who {
                        Who::Outside => true,
                        Who::Pod(pod) => pod == *name,
                        Who::Node(_) => false,
                    };
                    let holder = self.world.holder(*ip);
                    said && holder.is_none_or(|pod| pod == name) && !self.given_up.contains(ip)
                };
                all_new &= !self.endpoints.contains_key(name) && addresses.iter().all(own);
            }
            self.take_in(change, &mut touched);
        }
        if !all_new {
            return self.follow(touched);
        }
        let names: Vec<PodName> = touched.endpoints.iter().cloned().collect();
        self.first(touched);
        let open = [Done::Open, Done::Open];
        let closed = |name| self.endpoints.get(name).is_some_and(|e| e.done != open);
        self.owes |= names.iter().any(closed);
    }

    fn first(&mut self, mut touched: Touched) {
        if self.world.cluster_policies().next().is_some() {
            return self.bring_about(touched);
        }
        self.later.append(&mut touched.addresses);
        self.apply(&touched.endpoints);
        self.sweep();
    }

    /// Whether [`Enforcer::change_first`] has left nothing.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.later.is_empty()
    }

    /// Does what [`Enforcer::change_first`] has left.
    pub fn settle(&mut self) {
        if !self.is_settled() {
            // Nobody may less than before: what is left is of pods that came at addresses of nobody.
            self.bring_about(Touched::default());
        }
    }

    /// Whether [`Enforcer::change_first`] has left connections to be judged anew.
    #[must_use]
    pub fn owes(&self) -> bool {
        self.owes
    }

    /// Has all connections judged anew.
    pub fn forget_all(&mut self) {
        self.draft.judge_anew();
    }

    /// Whether a change takes nothing from anybody that NetworkPolicies allow: pods that nobody knew, or that had no
    /// address yet, at addresses that nobody had. These come all the time in a large cluster.
    pub(super) fn allows_more(&self, change: &Change) -> bool {
        let Change::Pod(name, Some(pod)) = change else { return false };
        let of_nobody = |ip: &IpAddr| matches!(self.world.at(*ip).who, Who::Outside);
        let unborn = self.world.pod(name).is_none_or(|old| {
            let Pod { node, addresses, .. } = &**pod;
            let born = Pod { node: node.clone(), addresses: addresses.clone(), ..old.clone() };
            old.addresses.is_empty() && born == **pod
        });
        unborn && !self.endpoints.contains_key(name) && pod.addresses.iter().all(of_nobody)
    }
}
