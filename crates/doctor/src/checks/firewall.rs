//! Firewalls of others.

use causeway_model::nft::foreign::Dropping;
use ipnet::IpNet;

use crate::facts::Facts;
use crate::finding::{Finding, Severity};

/// Chains that drop what pods send and what is sent to them.
pub(super) fn foreign_drop(facts: &Facts) -> Vec<Finding> {
    let nets = facts.node.nets();
    let dropped = |chain: &&Dropping| nets.is_empty() || !nets.iter().all(|n| chain.lets_pass(*n));
    facts.dropping.iter().filter(dropped).map(|chain| drop_finding(chain, &nets)).collect()
}

fn drop_finding(chain: &Dropping, nets: &[IpNet]) -> Finding {
    // Whether rules of its own let pods pass can be told only where they ask for addresses alone.
    let certain = (chain.all || chain.dockers_alone) && !nets.is_empty();
    let severity = if certain { Severity::Error } else { Severity::Warning };
    let place = &chain.place;
    let mut todo = match nets {
        [] => vec!["# with the pods' subnet in place of SUBNET:".to_owned()],
        _ => Vec::new(),
    };
    todo.extend(match nets {
        [] => placeholder(chain),
        _ => chain.commands(&not_passing(chain, nets)),
    });
    if chain.is_docker() {
        todo.push(
            "# Docker sets the policy again when it starts: see ip-forward-no-drop in \
                   /etc/docker/daemon.json"
                .to_owned(),
        );
    }
    todo.push("# or, in a list with type firewall, \"foreignForward\": \"insert\"".to_owned());
    Finding::new(
        "foreign-forward-drop",
        severity,
        format!("table {} {}, chain {}", place.layer.as_str(), place.table, place.chain),
    )
    .says(
        chain.what(),
        "what one table drops no other can accept: packets of pods do not pass this node unless \
         this chain accepts them",
    )
    .fix(todo)
}

fn not_passing(chain: &Dropping, nets: &[IpNet]) -> Vec<IpNet> {
    nets.iter().copied().filter(|net| !chain.lets_pass(*net)).collect()
}

/// Commands with a word in place of networks that nobody knows.
fn placeholder(chain: &Dropping) -> Vec<String> {
    let any = ["192.0.2.0/24", "2001:db8::/64"].map(|net| net.parse::<IpNet>().ok());
    let any: Vec<IpNet> = any.into_iter().flatten().collect();
    let mut commands = chain.commands(&any);
    for command in &mut commands {
        *command = any.iter().fold(command.clone(), |c, net| c.replace(&net.to_string(), "SUBNET"));
    }
    commands
}

/// Tables that cannot be looked into.
pub(super) fn legacy(facts: &Facts) -> Vec<Finding> {
    let finding = |legacy: &causeway_model::nft::foreign::Legacy| {
        let program = legacy.program();
        Finding::new("legacy-iptables", Severity::Warning, format!("{program}, table filter"))
            .says(
                format!("{program} has a table filter, which cannot be looked into"),
                "its chain FORWARD may drop packets of pods, which no other table can overrule",
            )
            .fix([
                format!("{program} -S FORWARD"),
                format!("# if that shows policy DROP: {program} -P FORWARD ACCEPT"),
            ])
    };
    facts.legacy.iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use causeway_model::nft::foreign::{Accepted, Layer, Legacy, Place};
    use causeway_types::Family;

    fn facts(pods: &[&str]) -> Facts {
        let mut facts = Facts::default();
        facts.node.pods = pods.iter().map(|ip| ip.parse().unwrap()).collect();
        facts.dropping.push(Dropping {
            place: Place::new(Layer::Ip, "filter", "FORWARD"),
            all: true,
            dockers_alone: true,
            accepted: Vec::new(),
            named: Vec::new(),
            leads_to: vec!["DOCKER-USER".to_owned()],
        });
        facts
    }

    #[test]
    fn table_chain_policy_and_commands() {
        let found = foreign_drop(&facts(&["10.244.1.2", "fd00::2"]));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].severity, Severity::Error);
        assert_eq!(found[0].place, "table ip filter, chain FORWARD");
        assert!(found[0].what.contains("policy drop"), "{}", found[0].what);
        assert_eq!(
            found[0].todo[..2],
            [
                "iptables -I FORWARD -s 10.244.1.2/32 -j ACCEPT",
                "iptables -I FORWARD -d 10.244.1.2/32 -j ACCEPT"
            ]
        );
        assert!(found[0].todo[2].contains("ip-forward-no-drop"), "{:?}", found[0].todo);
    }

    #[test]
    fn without_pods_it_is_a_warning() {
        let found = foreign_drop(&facts(&[]));
        assert_eq!(found[0].severity, Severity::Warning);
        assert_eq!(found[0].todo[1], "iptables -I FORWARD -s SUBNET -j ACCEPT");
    }

    #[test]
    fn rules_that_may_accept_make_it_a_warning() {
        let mut facts = facts(&["10.244.1.2"]);
        facts.dropping[0].all = false;
        let found = foreign_drop(&facts);
        assert_eq!(found[0].severity, Severity::Error);
        assert!(found[0].what.ends_with("accepts what is Docker's alone"), "{}", found[0].what);
        facts.dropping[0].dockers_alone = false;
        assert_eq!(foreign_drop(&facts)[0].severity, Severity::Warning);
    }

    #[test]
    fn a_chain_that_lets_pods_pass_is_fine() {
        let mut facts = facts(&["10.244.1.2"]);
        let net = "10.244.0.0/16".parse().unwrap();
        facts.dropping[0].accepted = vec![Accepted { net, source: true }];
        assert_eq!(foreign_drop(&facts).len(), 1);
        facts.dropping[0].accepted.push(Accepted { net, source: false });
        assert_eq!(foreign_drop(&facts), []);
    }

    #[test]
    fn the_old_iptables() {
        let facts = Facts { legacy: vec![Legacy(Family::V6)], ..Facts::default() };
        let found = legacy(&facts);
        assert_eq!(found[0].todo[0], "ip6tables-legacy -S FORWARD");
    }
}
