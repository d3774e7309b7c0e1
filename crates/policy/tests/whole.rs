//! All connections at once: classes of ends, the matrix, what a change of policies changes, and lint.

use std::net::IpAddr;

use causeway_policy::compare::{changes, matrix};
use causeway_policy::compile::Program;
use causeway_policy::lint::{Level, lint};
use causeway_policy::read::Object;
use causeway_policy::{Class, Direction, PodName, PortSet, Transport, World, classes};
use serde_json::Value;

fn world(text: &str) -> World {
    let all: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    let mut world = World::default();
    for value in &all {
        Object::read(value).unwrap().unwrap_or_else(|| panic!("{value}")).put(&mut world);
    }
    world
}

const PODS: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: x, labels: {team: blue}}}
---
{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2}, status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: x, name: web-1, labels: {app: web}}, spec: {nodeName: n1}, status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: x, name: web-2, labels: {app: web}}, spec: {nodeName: n2}, status: {podIPs: [{ip: 10.0.0.2}, {ip: 'fd00::2'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: x, name: db, labels: {app: db}}, spec: {nodeName: n1, containers: [{ports: [{name: sql, containerPort: 5432}]}]}, status: {podIPs: [{ip: 10.0.0.3}, {ip: 'fd00::3'}]}}
";

fn policy(name: &str, spec: &str) -> String {
    format!(
        "\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: x, name: {name}}}\nspec: {spec}\n"
    )
}

fn cluster(name: &str, spec: &str) -> String {
    format!(
        "\n---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

fn named(classes: &[Class]) -> Vec<String> {
    classes.iter().map(ToString::to_string).collect()
}

#[test]
fn what_policies_cannot_tell_apart_is_one_class() {
    let plain = world(PODS);
    assert_eq!(
        named(&classes(&[&plain])),
        [
            "x/db",
            "x/app=web (2 pods)",
            "node:n1, node:n2",
            "any other IPv4 address",
            "any other IPv6 address"
        ]
    );
    // A block tells addresses apart, of pods as well.
    let spec = "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/30, except: [10.0.0.2/32]}}, \
                {ipBlock: {cidr: 198.51.100.0/24, except: [198.51.100.0/25]}}]}]}";
    let world = world(&(PODS.to_owned() + &policy("p", spec)));
    let all = classes(&[&world]);
    assert_eq!(
        named(&all),
        [
            "x/db",
            "x/web-1",
            "x/web-2",
            "node:n1, node:n2",
            "any other IPv4 address",
            "10.0.0.0/30",
            "198.51.100.0/24",
            "any other IPv6 address"
        ]
    );
    // What stands for a part is in it, and nobody's.
    let part = all.iter().find(|c| c.to_string() == "198.51.100.0/24").unwrap();
    assert!(part.end.addresses[0] > "198.51.100.127".parse::<std::net::IpAddr>().unwrap());
}

/// Cells of the matrix are what single connections are.
#[test]
fn the_matrix_says_what_is_allowed() {
    let spec = "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: \
                {app: web}}}], ports: [{port: sql}]}]}";
    let world = world(&(PODS.to_owned() + &policy("db", spec)));
    let cells = matrix(&world);
    let cell = |from: &str, to: &str| {
        let found = cells.iter().find(|c| c.from.to_string() == from && c.to.to_string() == to);
        let found = found.unwrap_or_else(|| panic!("{from} to {to}"));
        let [(None, ports)] = &found.ports[..] else { panic!("{:?}", found.ports) };
        ports.to_string()
    };
    assert_eq!(cell("x/app=web (2 pods)", "x/db"), "tcp/5432");
    assert_eq!(cell("any other IPv6 address", "x/db"), "nothing");
    assert_eq!(cell("x/db", "x/app=web (2 pods)"), "everything");
    assert_eq!(cell("x/app=web (2 pods)", "x/app=web (2 pods)"), "everything");
    // Not that of a node that has the pod: what its own node sends always passes.
    assert_eq!(
        cells.iter().filter(|c| c.from.to_string() == "x/db" && c.to.to_string() == "x/db").count(),
        0
    );
    assert!(cells.iter().all(|c| c.from.is_pods() || c.to.is_pods()));
}

#[test]
fn changes_are_grouped_by_what_they_change() {
    let before = world(PODS);
    let spec = "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: \
                {app: web}}}], ports: [{port: 5432}]}]}";
    let after = world(&(PODS.to_owned() + &policy("db", spec)));
    let found = changes(&before, &after);
    let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "now dropped: tcp/0-5431,5433-65535 udp sctp protocols without ports to x/db from x/app=web \
             (2 pods)",
            "now dropped: everything to x/db from node:n1, node:n2; any other IPv4 address; any other IPv6 \
             address"
        ]
    );
    // Back again.
    let back = changes(&after, &before);
    assert!(back.iter().all(|c| c.dropped.is_none() && !c.allowed.is_none()), "{back:?}");
    assert_eq!(back.len(), found.len());
    // Written otherwise, the same.
    let same = "{podSelector: {matchExpressions: [{key: app, operator: In, values: [db]}]}, policyTypes: \
                [Ingress], ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}], \
                ports: [{port: 5432, endPort: 5432}]}]}";
    assert_eq!(changes(&after, &world(&(PODS.to_owned() + &policy("other", same)))), []);
    // Every change is one of some single connection.
    for change in &found {
        let end = change.to.end.clone();
        for from in &change.from {
            let (a, b) = from.end.pairs(&end).remove(0);
            let transport: Transport = "22".parse().unwrap();
            let judged = [&before, &after].map(|w| w.judge(&a, &b, transport).allowed());
            // Its own node is exempt in both.
            let dropped = change.dropped.contains(transport);
            assert!(judged == [true, !dropped] || a.to_string().contains("node n1"), "{change}");
        }
    }
    assert!(found.iter().all(|c| c.allowed == PortSet::none()));
}

#[test]
fn what_is_probably_not_meant() {
    let text = PODS.to_owned()
        + "\n---\n{apiVersion: v1, kind: Pod, metadata: {namespace: x, name: proxy, labels: {app: proxy}}, spec: {nodeName: n1, hostNetwork: true}, status: {podIPs: [{ip: 192.0.2.1}]}}"
        + &policy("nobody", "{podSelector: {matchLabels: {app: wbe}}}")
        + &policy("host", "{podSelector: {matchLabels: {app: proxy}}}")
        + &policy(
            "db",
            "{podSelector: {matchLabels: {app: db}}, ingress: [\
             {from: [{podSelector: {matchLabels: {app: job}}}]}, \
             {from: [{namespaceSelector: {matchLabels: {team: red}}}]}, \
             {ports: [{port: mysql}]}, \
             {from: [{ipBlock: {cidr: 10.0.0.0/24}}]}, \
             {from: [{ipBlock: {cidr: 0.0.0.0/0}}]}, \
             {from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 1, endPort: 9}]}, \
             {from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 3}]}, \
             {ports: [{port: 9, endPort: 1}]}]}",
        )
        + &cluster(
            "first",
            "{tier: Admin, priority: 5, subject: {namespaces: {}}, ingress: [\
             {action: Deny, from: [{namespaces: {}}]}, \
             {name: never, action: Accept, from: [{pods: {podSelector: {matchLabels: {app: web}}}}]}]}",
        )
        + &cluster(
            "second",
            "{tier: Admin, priority: 5, subject: {namespaces: {}}, ingress: [\
             {action: Accept, from: [{namespaces: {}}]}]}",
        );
    let found = lint(&world(&text), &["10.0.0.0/16".parse().unwrap()]);
    let has = |level: Level, policy: &str, at: &str, what: &str| {
        assert!(
            found.iter().any(|f| f.level == level
                && f.policy.to_string().ends_with(policy)
                && f.at == at
                && f.what.contains(what)),
            "{policy} {at} {what}: {found:#?}"
        );
    };
    let warning = Level::Warning;
    has(warning, "x/nobody", "spec.podSelector", "there are no pods with app=wbe of namespace x");
    has(warning, "x/host", "spec.podSelector", "1 are in their nodes' networks");
    has(warning, "x/db", "spec.ingress[0].from", "there are no pods with app=job");
    has(warning, "x/db", "spec.ingress[1].from", "no namespace has team=red");
    has(
        warning,
        "x/db",
        "spec.ingress[2].ports",
        "none of the 1 pods that it is for has a port named mysql",
    );
    has(warning, "x/db", "spec.ingress[3].from", "overlaps the pods' addresses (10.0.0.0/16)");
    has(warning, "x/db", "spec.ingress[6]", "rule 6 allows all of it already");
    has(Level::Error, "x/db", "spec.ingress[7].ports[0].endPort", "no range of ports");
    has(warning, "first", "spec.ingress[1]", "rule 1 (Deny) matches all of it before");
    has(warning, "second", "spec.priority", "first has priority 5 in tier Admin too");
    assert_eq!(found.len(), 10, "{found:#?}");
}

/// What a rule says of many is not said of each of them.
#[test]
fn a_program_is_as_large_as_what_it_has_to_tell_apart() {
    let mut text = PODS.to_owned();
    for n in 1..=200 {
        text += &format!(
            "\n---\n{{apiVersion: v1, kind: Pod, metadata: {{namespace: x, name: job-{n}, labels: {{app: job}}}}, \
             spec: {{nodeName: n2}}, status: {{podIPs: [{{ip: 10.0.1.{n}}}]}}}}"
        );
    }
    let spec = "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}], ports: \
                [{port: 80}]}, {from: [{podSelector: {matchLabels: {app: db}}}]}, {from: [{ipBlock: {cidr: \
                192.0.2.0/30}}], ports: [{port: 443}]}]}";
    let world = world(&(text + &policy("web", spec)));
    let program = |name: &str, many| {
        let pod = world.pod(&PodName::new("x", name)).unwrap();
        Program::of(&world.subject(pod), Direction::Ingress, many)
    };
    let listed = program("web-1", 1000).unwrap();
    // 200 jobs, both families of the two webs and the database.
    assert_eq!((listed.peers.len(), listed.groups.len()), (206, 0));
    let grouped = program("web-1", 100).unwrap();
    let db: Vec<IpAddr> = vec!["10.0.0.3".parse().unwrap(), "fd00::3".parse().unwrap()];
    assert_eq!(grouped.peers.iter().map(|(ip, _)| ip).collect::<Vec<_>>(), db);
    assert_eq!(grouped.groups.len(), 1);
    assert_eq!(grouped.members[&1].to_string(), "tcp/80");
    // Nothing, the block, nothing, and nothing of the other family.
    let ranges: Vec<String> =
        grouped.ranges.iter().map(|(ip, set)| format!("{ip} {set}")).collect();
    assert_eq!(ranges, ["0.0.0.0 nothing", "192.0.2.0 tcp/443", "192.0.2.4 nothing", ":: nothing"]);
    // Pods that policies cannot tell apart share it; whom none selects has none.
    assert_eq!(program("web-2", 100).unwrap(), grouped);
    assert_eq!(program("db", 100), None);
}

/// Of policies alone nobody can say for whom they are.
#[test]
fn manifests_without_pods_are_not_empty_clusters() {
    let text =
        policy("db", "{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: sql}]}]}");
    assert_eq!(lint(&world(text.trim_start_matches("\n---\n")), &[]), []);
}
