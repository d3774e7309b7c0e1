//! The agent, the CNI configuration, the plugins and what they keep on disk.

use causeway_model::nft::foreign::STOPPED;

use crate::facts::{Facts, PluginFile};
use crate::finding::{Finding, Severity};

/// What brings an agent's files back.
fn see_agent() -> [String; 2] {
    [
        "causeway node status".to_owned(),
        "# see that causeway agent runs on this node, and what it logs".to_owned(),
    ]
}

/// The node file: without it no pod starts.
pub(super) fn node_file(facts: &Facts) -> Vec<Finding> {
    let cni = &facts.cni;
    let finding = |id, severity| Finding::new(id, severity, cni.node_file.clone());
    if let Some(error) = &cni.node_file_error {
        let found = finding("node-file-unreadable", Severity::Error)
            .says(format!("the node file cannot be understood: {error}"), "no pod starts here")
            .fix([format!("rm {}", cni.node_file)]);
        return vec![found.fix(see_agent())];
    }
    if facts.node.file.is_none() && facts.node.served {
        let found = finding("node-file-missing", Severity::Error)
            .says("the node file is not there", "no pod starts here before the agent wrote it");
        return vec![found.fix(see_agent())];
    }
    if cni.node_file_old {
        let found = finding("node-file-old", Severity::Warning).says(
            "the node file was written before the machine was started",
            "pods may start with what was true before; /run has to be empty after a start",
        );
        return vec![found.fix(["# mount a tmpfs on /run".to_owned()]).fix(see_agent())];
    }
    Vec::new()
}

/// An agent that does not answer.
pub(super) fn silent(facts: &Facts) -> Vec<Finding> {
    let Some(why) = facts.agent.silent.as_ref().filter(|_| facts.node.served) else {
        return Vec::new();
    };
    let finding = Finding::new("agent-silent", Severity::Error, "the agent's socket")
        .says(
            format!("the agent does not answer: {why}"),
            "pods that run go on, and nothing follows changes of the cluster",
        )
        .fix(["# see that causeway agent runs on this node, and what it logs".to_owned()]);
    vec![finding]
}

/// What the agent itself complains of.
pub(super) fn reports(facts: &Facts) -> Vec<Finding> {
    let finding = |(whom, what): &(String, String)| {
        Finding::new("agent-reports", Severity::Warning, whom.clone())
            .says(what.clone(), "the agent tries again until it is right")
            .fix(["causeway node status".to_owned()])
    };
    // Chains of others are looked for by doctor itself, at this moment.
    let others = facts.agent.reports.iter().filter(|(_, what)| !what.starts_with(STOPPED));
    others.map(finding).collect()
}

/// The configuration list that the container runtime takes.
pub(super) fn list(facts: &Facts) -> Vec<Finding> {
    let cni = &facts.cni;
    let path = format!("{}/{}", cni.conf_dir, cni.own_list);
    if !facts.node.served {
        return Vec::new();
    }
    let Some(at) = cni.lists.iter().position(|l| l.file == cni.own_list) else {
        let finding = Finding::new("conflist-missing", Severity::Error, path).says(
            "our CNI configuration list is not there",
            "the container runtime has no network for pods, or another one's",
        );
        return vec![finding.fix(see_agent())];
    };
    if let Some(error) = &cni.lists[at].error {
        let finding = Finding::new("conflist-invalid", Severity::Error, path.clone()).says(
            format!("our CNI configuration list cannot be used: {error}"),
            "the container runtime passes it over",
        );
        return vec![finding.fix([format!("rm {path}")]).fix(see_agent())];
    }
    let before = cni.lists[..at].iter().filter(|l| l.error.is_none());
    let finding = |other: &crate::facts::List| {
        let file = format!("{}/{}", cni.conf_dir, other.file);
        Finding::new("conflist-shadowed", Severity::Error, file.clone())
            .says(
                format!("the list of network {:?} sorts before ours", other.network),
                "the container runtime takes the first: pods get that network",
            )
            .fix([format!("mv {file} {file}.off")])
    };
    before.map(finding).collect()
}

/// Binaries of the plugins.
pub(super) fn plugins(facts: &Facts) -> Vec<Finding> {
    facts.cni.plugins.iter().filter_map(|p| plugin(facts, p)).collect()
}

fn plugin(facts: &Facts, plugin: &PluginFile) -> Option<Finding> {
    let name = &plugin.name;
    let dirs = facts.cni.path.join(":");
    let dir = facts.cni.path.first().map_or("/opt/cni/bin", String::as_str);
    let install = format!("causeway-cni install {dir} --links --replace");
    let Some(path) = plugin.path.as_ref().filter(|_| plugin.executable) else {
        let what = match &plugin.path {
            None => format!("plugin {name} is not there"),
            Some(_) => format!("plugin {name} cannot be run"),
        };
        let place = plugin.path.clone().unwrap_or(dirs);
        let finding = Finding::new("plugin-missing", Severity::Error, place)
            .says(what, "no pod starts here: our CNI configuration list names it");
        return Some(finding.fix([install]));
    };
    if plugin.ours {
        return None;
    }
    let finding = Finding::new("plugin-foreign", Severity::Error, path.clone())
        .says(
            format!("plugin {name} is another program than causeway-cni"),
            "the agent does not learn of the pods that it makes, and nothing guards them",
        )
        .fix([install]);
    Some(finding)
}

/// Addresses that two pods have.
pub(super) fn addresses(facts: &Facts) -> Vec<Finding> {
    let finding = |(ip, network, pods): &(std::net::IpAddr, String, Vec<String>)| {
        Finding::new("address-twice", Severity::Error, format!("address {ip} of network {network}"))
            .says(
                format!("{} have the same address {ip}", super::some(pods)),
                "packets for it reach one of them, and the other none",
            )
            .fix(["# delete these pods, so that they are made anew with addresses of their own"
                .to_owned()])
    };
    facts.cni.shared.iter().map(finding).collect()
}

/// Leases that nobody needs, or nobody can read.
pub(super) fn leases(facts: &Facts) -> Vec<Finding> {
    let finding = |lease: &crate::facts::BadLease| {
        let (id, what) = match lease.unreadable {
            true => ("lease-unreadable", lease.why.clone()),
            false => {
                ("lease-stale", format!("the lease of {} is left over: {}", lease.owner, lease.why))
            }
        };
        Finding::new(id, Severity::Warning, lease.file.clone())
            .says(what, "the address is given to no other pod")
            .fix([format!("causeway ipam gc --network {}", lease.network)])
    };
    facts.cni.leases.iter().map(finding).collect()
}

/// Attachment records that lead nowhere.
pub(super) fn records(facts: &Facts) -> Vec<Finding> {
    let finding = |id, file: &String, what: String, todo: String| {
        Finding::new(id, Severity::Warning, file.clone())
            .says(what, "the pod's addresses are kept, and its routes and guards may be wrong")
            .fix([todo])
    };
    let unreadable = facts.cni.unreadable_records.iter().map(|file| {
        let what = "an attachment record cannot be understood".to_owned();
        finding("record-unreadable", file, what, format!("# delete its pod, then: rm -f {file}"))
    });
    let dead = facts.cni.dead_records.iter().map(|(file, why)| {
        let what = format!("an attachment record outlived its pod: {why}");
        finding("record-dead", file, what, "causeway ipam gc".to_owned())
    });
    unreadable.chain(dead).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{BadLease, List};

    fn ids(facts: &Facts) -> Vec<&'static str> {
        crate::judge(facts).into_iter().map(|f| f.id).collect()
    }

    fn served() -> Facts {
        let mut facts = Facts::default();
        facts.node.served = true;
        facts.node.file = serde_json::from_value(serde_json::json!({
            "generation": 1, "node": "n", "podCidrs": ["10.244.1.0/24"], "mtu": 1500,
            "attach": "routed", "bridge": "cni0", "noMasquerade": [], "served": [],
        }))
        .expect("a node file");
        facts.cni.conf_dir = "/etc/cni/net.d".into();
        facts.cni.own_list = "05-causeway.conflist".into();
        facts.cni.lists = vec![own()];
        facts
    }

    fn own() -> List {
        List { file: "05-causeway.conflist".into(), network: "pod-network".into(), error: None }
    }

    #[test]
    fn a_served_node_in_good_order() {
        assert_eq!(ids(&served()), Vec::<&str>::new());
    }

    #[test]
    fn node_files() {
        let mut facts = served();
        facts.cni.node_file_old = true;
        assert_eq!(ids(&facts), ["node-file-old"]);
        facts.node.file = None;
        assert_eq!(ids(&facts), ["node-file-missing"]);
        facts.cni.node_file_error = Some("torn".into());
        assert_eq!(ids(&facts), ["node-file-unreadable"]);
    }

    #[test]
    fn agents() {
        let mut facts = served();
        facts.agent.silent = Some("connection refused".into());
        assert_eq!(ids(&facts), ["agent-silent"]);
        facts.node = Default::default();
        assert_eq!(ids(&facts), Vec::<&str>::new(), "nobody expects one");
        let mut facts = served();
        facts.agent.reports = vec![("node".into(), "no podCIDR".into())];
        assert_eq!(ids(&facts), ["agent-reports"]);
        facts.agent.reports = vec![("node".into(), format!("{STOPPED}: chain x"))];
        assert_eq!(ids(&facts), Vec::<&str>::new(), "it is looked for here, too");
    }

    #[test]
    fn lists() {
        let other = List { file: "00-other.conflist".into(), network: "x".into(), error: None };
        let mut facts = served();
        facts.cni.lists.insert(0, other.clone());
        assert_eq!(ids(&facts), ["conflist-shadowed"]);
        facts.cni.lists[0].error = Some("no JSON".into());
        assert_eq!(ids(&facts), Vec::<&str>::new(), "the runtime passes it over");
        facts.cni.lists = vec![own(), List { file: "10-other.conf".into(), ..other }];
        assert_eq!(ids(&facts), Vec::<&str>::new(), "it sorts behind");
        facts.cni.lists[0].error = Some("no JSON".into());
        assert_eq!(ids(&facts), ["conflist-invalid"]);
        facts.cni.lists.clear();
        assert_eq!(ids(&facts), ["conflist-missing"]);
    }

    #[test]
    fn binaries() {
        let good = PluginFile {
            name: "causeway".into(),
            path: Some("/opt/cni/bin/causeway".into()),
            executable: true,
            ours: true,
        };
        let with = |plugin: PluginFile| {
            let mut facts = served();
            facts.cni.plugins = vec![plugin];
            ids(&facts)
        };
        assert_eq!(with(good.clone()), Vec::<&str>::new());
        assert_eq!(with(PluginFile { path: None, ..good.clone() }), ["plugin-missing"]);
        assert_eq!(with(PluginFile { executable: false, ..good.clone() }), ["plugin-missing"]);
        assert_eq!(with(PluginFile { ours: false, ..good }), ["plugin-foreign"]);
    }

    #[test]
    fn one_address_for_two() {
        let mut facts = served();
        let pods = vec!["default/a".to_owned(), "default/b".to_owned()];
        facts.cni.shared = vec![("10.244.1.2".parse().unwrap(), "n".into(), pods)];
        let found = crate::judge(&facts);
        assert_eq!(found[0].what, "default/a, default/b have the same address 10.244.1.2");
        assert_eq!((found[0].id, found[0].severity), ("address-twice", Severity::Error));
    }

    #[test]
    fn files_of_the_plugins() {
        let mut facts = served();
        let stale = BadLease { network: "n".into(), ..BadLease::default() };
        facts.cni.leases = vec![BadLease { unreadable: true, ..stale.clone() }, stale];
        facts.cni.unreadable_records = vec!["a".into()];
        facts.cni.dead_records = vec![("b".into(), "gone".into())];
        assert_eq!(
            ids(&facts),
            ["lease-unreadable", "lease-stale", "record-unreadable", "record-dead"]
        );
        assert_eq!(crate::judge(&facts)[1].todo, ["causeway ipam gc --network n"]);
    }
}
