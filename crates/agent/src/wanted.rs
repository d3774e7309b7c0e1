//! What plugins ask of pods: the addresses that they are to have, and who could give those out.

use std::net::IpAddr;
use std::time::Duration;

use causeway_cluster::{Health, Snapshot};
use causeway_desired::ranges;
use tokio::sync::watch;

/// How long a pod is waited for that the watch has not shown: the kubelet hears of it at the same time
/// as the agent does. The plugin gives up after 2 s.
const SEEN_WITHIN: Duration = Duration::from_millis(1500);

/// What is known of a pod's wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The annotation's text; empty where it has none.
    Address(String),
    /// The pod is not among those of this node yet, though the watch is well.
    NotSeen(String),
    /// It cannot be told: the API does not answer.
    Unknown(String),
}

/// The pods of this node and the ranges of all, as the watches show them.
#[derive(Clone, Debug)]
pub(crate) struct Pods {
    pub(crate) snapshots: watch::Receiver<Snapshot>,
    pub(crate) health: Health,
}

impl Pods {
    /// The wish of a pod. One of the same name and another UID is a former one.
    pub(crate) async fn wanted(&self, namespace: &str, name: &str, uid: Option<&str>) -> Wanted {
        let mut snapshots = self.snapshots.clone();
        let found = async {
            loop {
                if let Some(wanted) = self.look(&mut snapshots, namespace, name, uid) {
                    return wanted;
                }
                if snapshots.changed().await.is_err() {
                    return Wanted::Unknown("the agent is about to end".to_owned());
                }
            }
        };
        tokio::time::timeout(SEEN_WITHIN, found).await.unwrap_or_else(|_| {
            Wanted::NotSeen(format!(
                "pod {namespace}/{name} has not shown up among those of this node within \
                 {SEEN_WITHIN:?}"
            ))
        })
    }

    fn look(
        &self,
        snapshots: &mut watch::Receiver<Snapshot>,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
    ) -> Option<Wanted> {
        let snapshot = snapshots.borrow_and_update();
        let same = |info: &&causeway_desired::input::PodInfo| {
            uid.is_none() || info.mirror || info.pod.uid.as_deref() == uid
        };
        if let Some(info) = snapshot.view.pods.get(&format!("{namespace}/{name}")).filter(same) {
            return Some(Wanted::Address(info.fixed_ip.clone().unwrap_or_default()));
        }
        let why = match self.health.pods().error {
            Some((_, error)) => error,
            None if !snapshot.pods_synced => "the pods have not been listed yet".to_owned(),
            None => return None,
        };
        Some(Wanted::Unknown(why))
    }

    /// The nodes that have an address in one of their ranges, in words.
    pub(crate) fn holders(&self, ip: IpAddr) -> String {
        let snapshot = self.snapshots.borrow();
        let all = ranges::holders(&snapshot.view, ip);
        let all: Vec<String> = all.iter().map(|(node, cidr)| format!("{node} ({cidr})")).collect();
        all.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use causeway_desired::input::{ClusterView, PodInfo};
    use causeway_types::PodRef;

    fn pod(uid: &str, ip: Option<&str>) -> PodInfo {
        let pod = PodRef { namespace: "d".into(), name: "web-0".into(), uid: Some(uid.to_owned()) };
        PodInfo {
            pod,
            host_network: false,
            finished: false,
            ips: vec![],
            fixed_ip: ip.map(str::to_owned),
            mirror: false,
        }
    }

    fn with(info: PodInfo) -> Snapshot {
        let pods = [(info.pod.to_string(), info)].into();
        Snapshot::synced_with(ClusterView { pods, ..ClusterView::default() })
    }

    #[test]
    fn a_pod_is_waited_for_unless_the_api_is_away() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (sender, snapshots) = watch::channel(Snapshot::default());
            let pods = Pods { snapshots, health: Health::default() };
            let ask = || pods.wanted("d", "web-0", Some("u2"));
            assert!(matches!(ask().await, Wanted::Unknown(_)), "nothing is known yet");
            // Its forerunner of the same name.
            sender.send(with(pod("u1", Some("10.244.1.8")))).unwrap();
            let late = async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                sender.send(with(pod("u2", Some("10.244.1.9")))).unwrap();
            };
            let (answer, ()) = tokio::join!(ask(), late);
            assert_eq!(answer, Wanted::Address("10.244.1.9".into()));
            sender.send(with(pod("u2", None))).unwrap();
            assert_eq!(ask().await, Wanted::Address(String::new()));
            sender.send(with(pod("u1", None))).unwrap();
            assert!(matches!(ask().await, Wanted::NotSeen(_)));
            // A pod that the kubelet read from a file has another UID in the API.
            sender.send(with(PodInfo { mirror: true, ..pod("u1", None) })).unwrap();
            assert_eq!(ask().await, Wanted::Address(String::new()));
        });
    }
}
