//! What is dropped has a reason that a person can read, and what the kernel has can be asked.

use std::time::Duration;

use causeway_agent::policy::DropReport;
use causeway_lab::Road;
use causeway_types::Family;
use causeway_types::state::Attach;
use serde_json::{Value, json};

use crate::enforce::{CLUSTER_POLICIES, apply, pod, remove, settled, tcp, udp};
use crate::world::{PATIENCE, World, binaries, dual, eventually, with};

/// `causeway policy LINE` on a node, as the agent there may ask the API: the exit code and what was said.
fn policy(world: &World, node: &str, line: &str) -> (i32, String) {
    let causeway = binaries().causeway;
    let line = format!(
        "KUBECONFIG=/etc/causeway/kubeconfig {} policy {line} 2>&1; echo code $?",
        causeway.display()
    );
    let (_, said) = world.causeway_shell(node, &line);
    let (text, code) = said.rsplit_once("code ").unwrap_or_else(|| panic!("{line}: {said}"));
    (code.trim().parse().unwrap(), text.to_owned())
}

fn drops(world: &World, node: &str) -> DropReport {
    causeway_agent::client::drops(&world.socket(node)).unwrap()
}

/// Waits for a record on a node that tells of all these.
#[track_caller]
fn told(world: &World, node: &str, words: &[&str]) -> Value {
    let mut found = Value::Null;
    eventually(&format!("{node} tells of {words:?}"), PATIENCE, || {
        let all = serde_json::to_value(drops(world, node)).unwrap();
        let fits = |record: &&Value| words.iter().all(|word| record.to_string().contains(word));
        match all["records"].as_array().unwrap().iter().find(fits) {
            Some(record) => {
                found = record.clone();
                Ok(())
            }
            None => Err(all.to_string()),
        }
    });
    found
}

/// Field failure 24: which policy dropped this? Between which pods, at which end, by which rule or for want of one, and
/// how much.
fn every_drop_has_a_name(attach: Attach, road: Road) {
    with(dual(2, attach, road), |world| {
        causeway_lab::define_cluster_policies(&world.client).unwrap();
        let shop = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
        world.client.post("/api/v1/namespaces", &shop).unwrap();
        let front = pod(world, "shop/front", "node-1", &json!({"app": "front"}));
        let db = pod(world, "shop/db", "node-2", &json!({"app": "db"}));
        let near = pod(world, "shop/near", "node-1", &json!({"app": "near"}));
        let to_db =
            json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"]});
        apply(world, "shop", "db", &to_db);
        world.client.post(CLUSTER_POLICIES, &json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": {"name": "guard"},
            "spec": {
                "tier": "Admin", "priority": 10,
                "subject": {"pods": {"podSelector": {"matchLabels": {"app": "near"}}, "namespaceSelector": {}}},
                "egress": [{"name": "not-out", "action": "Deny",
                    "to": [{"pods": {"podSelector": {"matchLabels": {"app": "db"}}, "namespaceSelector": {}}}]}],
            },
        })).unwrap();
        settled(world, 2);
        for family in Family::BOTH {
            let to = db.ip(family).unwrap();
            let before = drops(world, "node-2").packets["ingress"];
            assert!(!tcp(&world.netns(&front), (to, 8080).into()));
            assert!(!udp(&world.netns(&front), (to, 53).into()));
            assert!(!world.reaches(&world.netns(&front), to, 56));
            let from = front.ip(family).unwrap().to_string();
            for (transport, at_least) in [("tcp/8080", 1), ("udp/53", 1), ("icmp", 1)] {
                let quoted = format!("\"{transport}\"");
                let record = told(world, "node-2", &[&from, &to.to_string(), &quoted]);
                assert_eq!(record["from"]["pod"], "shop/front", "{record}");
                assert_eq!(record["to"]["pod"], "shop/db", "{record}");
                assert_eq!(record["pod"], "shop/db", "{record}");
                assert_eq!(record["reason"], "ingress", "{record}");
                assert_eq!(record["policies"], json!(["NetworkPolicy shop/db"]), "{record}");
                assert!(record["rule"].is_null(), "no rule: {record}");
                assert!(record["why"].as_str().unwrap().contains("no rule allows it"), "{record}");
                assert!(record["seen"].as_u64().unwrap() >= at_least, "{record}");
            }
            let all = drops(world, "node-2").packets["ingress"];
            assert!(all >= before + 3, "{before} and {all}");
            assert_eq!(drops(world, "node-1").packets["ingress"], 0, "it left node-1");

            // By a rule, at the end that sends.
            assert!(!tcp(&world.netns(&near), (to, 8080).into()));
            let from = near.ip(family).unwrap().to_string();
            let record = told(world, "node-1", &[&from, &to.to_string(), "tcp/8080"]);
            assert_eq!(record["reason"], "egress", "{record}");
            assert_eq!(record["policies"], json!(["ClusterNetworkPolicy guard"]), "{record}");
            let rule = record["rule"].as_str().unwrap();
            assert!(rule.contains("egress rule 1 (not-out)"), "{rule}");
        }
        numbers(world);
        words(world);
        an_answer_that_is_stopped(world);

        // What is allowed now is not said to be dropped by what is in force now.
        remove(world, "shop", "db");
        settled(world, 1);
        assert!(tcp(&world.netns(&front), (db.ip(Family::V4).unwrap(), 8080).into()));
        asks(world);
    });
}

/// The numbers for monitoring, by policy and rule.
fn numbers(world: &World) {
    let said = causeway_agent::client::request(&world.socket("node-2"), "GET", "/v1/metrics");
    let text = String::from_utf8(said.unwrap()).unwrap();
    let line = |start: &str| {
        let line = text.lines().find(|line| line.starts_with(start));
        let line = line.unwrap_or_else(|| panic!("{start} in {text}"));
        line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()
    };
    let by_policy = line(
        "causeway_policy_drops_total{reason=\"ingress\",policy=\"NetworkPolicy shop/db\",rule=\"\"}",
    );
    let all = line("causeway_policy_dropped_packets_total{reason=\"ingress\"}");
    assert!(by_policy >= 6 && all >= by_policy, "{by_policy} of {all}");
}

/// `causeway policy drops`, of all and of one pod.
fn words(world: &World) {
    let (code, text) = policy(world, "node-1", "drops shop/near");
    assert_eq!(code, 0, "{text}");
    let line =
        text.lines().find(|line| line.contains("tcp/8080")).unwrap_or_else(|| panic!("{text}"));
    for word in ["pod shop/near (", "to pod shop/db (", "ClusterNetworkPolicy guard", "not-out"] {
        assert!(line.contains(word), "{word}: {line}");
    }
    let (_, text) = policy(world, "node-1", "drops shop/other");
    assert_eq!(text.lines().count(), 1, "the sum alone: {text}");
}

/// A connection that was allowed is forbidden: who opened it and who answers is told rightly, whichever of
/// them sends.
fn an_answer_that_is_stopped(world: &World) {
    use std::io::{Read, Write};
    let open = json!({"podSelector": {"matchLabels": {"app": "late"}}, "ingress": [{}]});
    let late = pod(world, "shop/late", "node-1", &json!({"app": "late"}));
    apply(world, "shop", "late", &open);
    settled(world, 3);
    let far = causeway_lab::find_pod(&world.client, "shop/db").unwrap();
    let connections = Family::BOTH.map(|family| {
        let at = std::net::SocketAddr::from((late.ip(family).unwrap(), 0));
        let listener =
            causeway_lab::inside(&world.netns(&late), || Ok(std::net::TcpListener::bind(at)?));
        let listener = listener.unwrap();
        let to = listener.local_addr().unwrap();
        let client = causeway_lab::inside(&world.netns(&far), || {
            Ok(std::net::TcpStream::connect_timeout(&to, Duration::from_secs(3))?)
        });
        let (mut client, (mut server, _)) = (client.unwrap(), listener.accept().unwrap());
        client.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        server.write_all(b"a").unwrap();
        client.read_exact(&mut [0]).unwrap();
        (family, client, server)
    });
    remove(world, "shop", "late");
    let closed =
        json!({"podSelector": {"matchLabels": {"app": "late"}}, "policyTypes": ["Ingress"]});
    apply(world, "shop", "late", &closed);
    settled(world, 3);
    for (family, mut client, mut server) in connections {
        let port = format!("tcp/{}", server.local_addr().unwrap().port());
        let from = far.ip(family).unwrap().to_string();
        let told_rightly = |words: &[&str]| {
            let record = told(world, "node-1", words);
            assert_eq!(record["from"]["pod"], "shop/db", "who opened it: {record}");
            assert_eq!(record["to"]["pod"], "shop/late", "who answers: {record}");
            assert_eq!(record["policies"], json!(["NetworkPolicy shop/late"]), "{record}");
            record
        };
        client.write_all(b"b").unwrap();
        let record = told_rightly(&[&from, &port, "shop/late"]);
        assert!(record["answers"].is_null(), "it was not answered: {record}");
        server.write_all(b"b").unwrap();
        told_rightly(&[&from, &port, "shop/late", "\"answers\":true"]);
        let swapped = drops(world, "node-1")
            .records
            .into_iter()
            .find(|record| record.from.pod.as_deref() == Some("shop/late"));
        assert!(swapped.is_none(), "{swapped:?}");
    }
    remove(world, "shop", "late");
    settled(world, 2);
}

/// `explain --live` and `--probe`.
fn asks(world: &World) {
    // node-1 has the pod that sends, and its rule.
    let (code, text) = policy(world, "node-1", "explain --live shop/near shop/db 8080");
    assert_eq!(code, 1, "{text}");
    assert!(
        text.matches("kernel   drops it").count() + text.matches("out_deny").count() >= 2,
        "{text}"
    );
    let (code, text) = policy(world, "node-1", "explain --probe shop/near shop/db 8080");
    assert_eq!(code, 1, "{text}");
    let words = "probe    no answer; ";
    assert!(text.contains(words) && text.contains("ClusterNetworkPolicy guard"), "{text}");
    for port in ["8080", "81", "icmp", "udp/81"] {
        let line = format!("explain --probe shop/front shop/db {port}");
        let (code, text) = policy(world, "node-1", &line);
        assert_eq!(code, 0, "{port}: {text}");
        let reached =
            text.matches("it was answered").count() + text.matches("it was reached").count();
        assert_eq!(reached, 2, "by both families: {text}");
        assert_eq!(text.matches("kernel   lets it pass").count(), 2, "{text}");
    }
    let (code, text) = policy(world, "node-2", "explain --live shop/front shop/near 8080");
    assert!(code == 0 && text.contains("is a pod of this node: ask there"), "{text}");
    // Its own node always reaches it, whatever the policies say.
    let (code, text) = policy(world, "node-1", "explain --live node:node-1 shop/near 8080");
    assert!(code == 0 && text.contains("goes by no hook"), "{text}");
    let (code, text) = policy(world, "node-1", "explain --live shop/near node:node-1 10250");
    assert!(code == 0 && text.contains("lets it pass"), "{text}");

    // Policies that nobody enforces: the kernel has other ones.
    let dir = tempfile::tempdir().unwrap();
    let manifest = dir.path().join("other.json");
    let pods = ["shop/front", "shop/near"].map(|name| {
        let pod = causeway_lab::find_pod(&world.client, name).unwrap();
        let ips: Vec<Value> = pod.ips.iter().map(|ip| json!({"ip": ip})).collect();
        let (namespace, bare) = name.split_once('/').unwrap();
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": bare, "namespace": namespace, "labels": {"app": bare}},
            "spec": {"nodeName": "node-1"}, "status": {"podIPs": ips}})
    });
    let other = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "other", "namespace": "shop"},
        "spec": {"podSelector": {"matchLabels": {"app": "front"}}, "policyTypes": ["Ingress"]}});
    let [front, near] = &pods;
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [front, near, other]});
    std::fs::write(&manifest, list.to_string()).unwrap();
    let line = format!("explain --live -f {} shop/near shop/front 8080", manifest.display());
    let (code, text) = policy(world, "node-1", &line);
    assert!(code == 2 && text.contains("differs"), "{code}: {text}");
    let (code, text) = policy(world, "node-1", &line.replace("--live", "--probe"));
    assert!(code == 2 && text.contains("it was answered"), "{code}: {text}");
}

#[test]
fn failure_24_every_drop_has_a_name_of_routed_pods() {
    every_drop_has_a_name(Attach::Routed, Road::Vxlan);
}

#[test]
fn failure_24_every_drop_has_a_name_of_bridged_pods() {
    every_drop_has_a_name(Attach::Bridge, Road::Direct);
}
