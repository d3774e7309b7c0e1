//! Programs that manage interfaces, and do not know that some are ours.

use crate::facts::Facts;
use crate::finding::{Finding, Severity};

/// NetworkManager without a word about our interfaces.
pub(super) fn network_manager(facts: &Facts) -> Vec<Finding> {
    let managers = &facts.managers;
    if !managers.network_manager || managers.network_manager_told {
        return Vec::new();
    }
    let file = "/etc/NetworkManager/conf.d/causeway.conf";
    let finding = Finding::new("networkmanager-manages", Severity::Warning, file)
        .says(
            "NetworkManager runs, and nothing tells it to leave our interfaces alone",
            "it may set pods' interfaces down, or give them addresses and routes",
        )
        .fix([
            format!("causeway doctor --print networkmanager > {file}"),
            "systemctl reload NetworkManager".to_owned(),
        ]);
    vec![finding]
}

/// systemd-networkd without a word about our interfaces and routes.
pub(super) fn networkd(facts: &Facts) -> Vec<Finding> {
    let managers = &facts.managers;
    let mut found = Vec::new();
    if !managers.networkd {
        return found;
    }
    let again = || "systemctl restart systemd-networkd".to_owned();
    if !managers.networkd_told {
        let file = "/etc/systemd/network/05-causeway.network";
        let finding = Finding::new("networkd-manages", Severity::Warning, file).says(
            "systemd-networkd runs, and nothing tells it to leave our interfaces alone",
            "a file of its own for all interfaces takes ours as well, and gives them addresses",
        );
        found.push(finding.fix([format!("causeway doctor --print networkd > {file}"), again()]));
    }
    if !managers.networkd_keeps_routes {
        let dir = "/etc/systemd/networkd.conf.d";
        let finding = Finding::new(
            "networkd-removes-routes",
            Severity::Warning,
            format!("{dir}/causeway.conf"),
        )
        .says(
            "systemd-networkd runs, and nothing tells it to keep routes that it did not make",
            "when it starts again it removes the routes to pods of other nodes, until the \
                     agent puts them back",
        );
        found.push(finding.fix([
            format!("mkdir -p {dir}"),
            format!("causeway doctor --print networkd-routes > {dir}/causeway.conf"),
            again(),
        ]));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Managers;

    #[test]
    fn only_one_that_runs_and_was_not_told() {
        let judge = |managers| {
            let facts = Facts { managers, ..Facts::default() };
            [network_manager(&facts), networkd(&facts)]
                .concat()
                .iter()
                .map(|f| f.id)
                .collect::<Vec<_>>()
        };
        let mut managers =
            Managers { network_manager: true, networkd: true, ..Managers::default() };
        assert_eq!(
            judge(managers.clone()),
            ["networkmanager-manages", "networkd-manages", "networkd-removes-routes"]
        );
        managers.network_manager_told = true;
        managers.networkd_told = true;
        assert_eq!(judge(managers.clone()), ["networkd-removes-routes"]);
        managers.networkd_keeps_routes = true;
        assert_eq!(judge(managers), Vec::<&str>::new());
        assert_eq!(judge(Managers::default()), Vec::<&str>::new());
    }
}
