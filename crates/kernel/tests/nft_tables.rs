//! Tables on the real kernel: what was written is what is read, and `nft` agrees.

use std::io::Write;
use std::process::{Command, Stdio};

use causeway_desired::input::{Config, Inputs, NodeFacts, NodeInfo, Path, Road};
use causeway_desired::{node, pod};
use causeway_kernel::netns;
use causeway_kernel::nft::Nft;
use causeway_model::nft::{
    Base, Chain, ChainType, Content, Element, ElementKey, Field, Hook, KeyPart, KeyType, MatchOp,
    NftFamily, NftTable, Policy, Rhs, Rule, Set, Stmt, Verdict, text,
};
use causeway_model::{Key, Object};
use causeway_plan::{NftOp, TableId, table_ops};
use causeway_types::state::{Attach, AttachmentRecord};
use causeway_types::{Cidr, Family, IfName, Mac, Mtu, NodeName};

/// Runs a test in a thread with namespaces of its own.
fn isolated(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            netns::unshare_for_test().expect("needs root");
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn run(command: &mut Command, input: &str) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nft and ip are needed");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?}: {err}\n{input}");
    String::from_utf8(out.stdout).unwrap()
}

fn listing() -> String {
    run(Command::new("nft").args(["list", "ruleset"]), "")
}

fn name(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

fn record(family: &[Family]) -> AttachmentRecord {
    let addresses = family.iter().map(|f| match f {
        Family::V4 => "10.244.1.5/24".parse().unwrap(),
        Family::V6 => "fd00:10:244:1::5/64".parse().unwrap(),
    });
    AttachmentRecord {
        container_id: "c1".into(),
        ifname: name("eth0"),
        pod: None,
        netns: "/run/netns/x".into(),
        network: "pod-network".into(),
        attach: Attach::Routed,
        pending: false,
        host_ifname: name("cw1"),
        mac: Mac::derived("pod"),
        host_mac: Mac::derived("host"),
        mtu: Mtu::new(1450).unwrap(),
        addresses: addresses.collect(),
        gateways: family.iter().map(|f| pod::routed_gateway(*f)).collect(),
        bridge: None,
        masquerade_except: Some(vec!["10.244.0.0/16".parse().unwrap()]),
        boot_id: String::new(),
        leaving: None,
    }
}

fn inputs(attach: Attach) -> Inputs {
    let mut inputs = Inputs { me: Some(NodeName::new("node-1").unwrap()), ..Inputs::default() };
    for i in 1..4u8 {
        let cidr = |t: String| t.parse::<Cidr>().unwrap();
        inputs.view.nodes.insert(
            NodeName::new(format!("node-{i}")).unwrap(),
            NodeInfo {
                addresses: vec![format!("192.168.1.1{i}").parse().unwrap()],
                pod_cidrs: vec![
                    cidr(format!("10.244.{i}.0/24")),
                    cidr(format!("fd00:10:244:{i}::/64")),
                ],
                ..NodeInfo::default()
            },
        );
        let mtu = Mtu::new(1500).unwrap();
        let path = Path { dev: name("eth0"), on_link: true, mtu };
        inputs.facts.paths.insert(format!("192.168.1.1{i}").parse().unwrap(), path);
    }
    inputs.facts = NodeFacts {
        addresses: vec![(name("eth0"), "192.168.1.11/24".parse().unwrap())],
        mtus: [(name("eth0"), Mtu::new(1500).unwrap())].into(),
        ..inputs.facts
    };
    inputs.config = Config { attach, road: Road::Vxlan, ..Config::default() };
    inputs
}

fn agent_table(attach: Attach) -> NftTable {
    let outcome = node::node_objects(&inputs(attach));
    assert_eq!(outcome.problems, vec![]);
    let key = Key::Table { family: NftFamily::Inet, name: "causeway".into() };
    match &outcome.desired.get(&key).unwrap().object {
        Object::Table(table) => table.clone(),
        other => panic!("{other:?}"),
    }
}

fn pod_tables() -> Vec<NftTable> {
    let record = record(&Family::BOTH);
    let context = pod::PodContext { served: true, hairpin: false, route_protocol: 203 };
    let desired = pod::host_objects(&record, &context);
    let tables = desired.iter().filter_map(|(_, e)| match &e.object {
        Object::Table(t) => Some(t.clone()),
        _ => None,
    });
    tables.collect()
}

fn veth() {
    run(Command::new("ip").args(["link", "add", "cw1", "type", "veth", "peer", "name", "cwp"]), "");
}

fn check(table: &NftTable) {
    let mut by_us = String::new();
    isolated(|| {
        veth();
        let mut nft = Nft::open().unwrap();
        let id = TableId::of(table);
        nft.apply(&id, &table_ops(table, None)).unwrap();
        let have = nft.read_table(table.family, &table.name).unwrap().unwrap();
        assert!(table.satisfied_by(&have), "wanted {table:#?}\nread {have:#?}");
        assert_eq!(table_ops(table, Some(&have)), vec![]);
        by_us = listing();
    });
    let mut by_nft = String::new();
    isolated(|| {
        veth();
        run(Command::new("nft").args(["-f", "-"]), &text::table(table));
        by_nft = listing();
    });
    assert_eq!(parts(&by_us), parts(&by_nft));
}

/// The sets and chains of a listing. Chains are listed in the order in which they were made; one that
/// others jump to has to be made before them.
fn parts(listing: &str) -> Vec<&str> {
    let mut all: Vec<&str> = listing.trim_end_matches("}\n").split("\n\n").map(str::trim).collect();
    let (head, first) = all[0].split_once('\n').unwrap_or((all[0], ""));
    all[0] = first.trim();
    all.push(head);
    all.sort_unstable();
    all
}

#[test]
fn the_agents_table_is_as_nft_would_write_it() {
    check(&agent_table(Attach::Bridge));
    check(&agent_table(Attach::Routed));
}

#[test]
fn the_plugins_tables_are_as_nft_would_write_them() {
    let tables = pod_tables();
    assert_eq!(tables.len(), 2);
    for table in tables {
        check(&table);
    }
}

#[test]
fn a_transaction_is_whole_or_nothing_and_names_the_step() {
    isolated(|| {
        let mut nft = Nft::open().unwrap();
        let id = TableId { family: NftFamily::Inet, name: "t".into() };
        let ops = vec![
            NftOp::AddTable,
            NftOp::AddChain { name: "c".into(), base: None },
            NftOp::DelSet { name: "nowhere".into() },
        ];
        let error = nft.apply(&id, &ops).unwrap_err().to_string();
        assert!(error.contains("step 3 of 3") && error.contains("nowhere"), "{error}");
        assert_eq!(nft.read_table(id.family, "t").unwrap(), None);
    });
}

#[test]
fn a_foreign_rule_is_seen_and_taken_out() {
    isolated(|| {
        let table = agent_table(Attach::Routed);
        let id = TableId::of(&table);
        let mut nft = Nft::open().unwrap();
        nft.apply(&id, &table_ops(&table, None)).unwrap();
        for edit in [
            "insert rule inet causeway tunnel accept",
            "add rule inet causeway tunnel tcp dport 22 log accept",
            "add chain inet causeway mine",
            "delete element inet causeway pods4 { 10.244.1.0/24 }",
            "add element inet causeway peers4 { 203.0.113.9 }",
            "flush chain inet causeway masq",
        ] {
            if Command::new("nft").arg(edit).status().is_ok_and(|s| s.success()) {
                let have = nft.read_table(id.family, &id.name).unwrap().unwrap();
                let ops = table_ops(&table, Some(&have));
                assert_ne!(ops, vec![], "{edit} was not seen");
                nft.apply(&id, &ops).unwrap();
                let have = nft.read_table(id.family, &id.name).unwrap().unwrap();
                assert_eq!(table_ops(&table, Some(&have)), vec![], "{edit} was not repaired");
            }
        }
    });
}

#[test]
fn ten_thousand_elements_and_back() {
    isolated(|| {
        let mut table = NftTable::new(NftFamily::Inet, "causeway", true);
        for (n, interval) in [("plain", false), ("ranges", true)] {
            let mut set = Set::of(KeyType::Addr(Family::V4), interval);
            for i in 0..10_000u32 {
                let ip = std::net::Ipv4Addr::from_bits(0x0a00_0000 + 2 * i);
                set.add(KeyPart::addr(ip.into()), Some(format!("number {i}")));
            }
            table.sets.insert(n.into(), set);
        }
        let id = TableId::of(&table);
        let mut nft = Nft::open().unwrap();
        nft.apply(&id, &table_ops(&table, None)).unwrap();
        let have = nft.read_table(id.family, &id.name).unwrap().unwrap();
        assert!(table.satisfied_by(&have));
        assert_eq!(have.sets["plain"].elements.len(), 10_000);
        // One element less is one step.
        let key = ElementKey::from(KeyPart::addr("10.0.0.2".parse().unwrap()));
        for set in table.sets.values_mut() {
            set.elements.remove(&key).unwrap();
        }
        let ops = table_ops(&table, Some(&have));
        assert_eq!(ops.len(), 2, "{ops:?}");
        nft.apply(&id, &ops).unwrap();
        let have = nft.read_table(id.family, &id.name).unwrap().unwrap();
        assert!(table.satisfied_by(&have));
    });
}

/// A table with every kind of map, translation and mark.
fn translations() -> NftTable {
    let base = |hook, priority| Base {
        kind: ChainType::Nat,
        hook,
        priority,
        device: None,
        policy: Policy::Accept,
    };
    let mut table = NftTable::new(NftFamily::Inet, "causeway_cni", false);
    let mut rules = Vec::new();
    for (family, name, ip) in
        [(Family::V4, "ports4", "10.9.0.2"), (Family::V6, "ports6", "fd09::2")]
    {
        let addr = KeyPart::addr(ip.parse().unwrap());
        let port = vec![KeyType::InetProto, KeyType::InetService];
        let pod = vec![KeyType::Addr(family), KeyType::InetService];
        let mut map = Set::map(port.clone(), pod.clone());
        let to: Element = Content {
            data: vec![addr.clone(), KeyPart::Port(80)],
            comment: Some("c1 eth0".into()),
            ..Content::default()
        }
        .into();
        map.elements.insert([KeyPart::Proto(6), KeyPart::Port(8080)].into(), to.clone());
        table.sets.insert(name.into(), map);
        let by_ip: Vec<KeyType> = [KeyType::Addr(family)].into_iter().chain(port).collect();
        let mut map = Set::map(by_ip, pod);
        map.elements.insert([addr, KeyPart::Proto(17), KeyPart::Port(53)].into(), to);
        table.sets.insert(format!("ip_{name}"), map);
        let fields = vec![Field::L4Proto, Field::Dport];
        let with_ip = [Field::Daddr(family)].into_iter().chain(fields.clone()).collect();
        rules.push(Rule::new(
            "by address",
            vec![Stmt::Dnat { family, fields: with_ip, map: format!("ip_{name}") }],
        ));
        rules.push(Rule::new("by port", vec![Stmt::Dnat { family, fields, map: name.into() }]));
    }
    table.chains.insert("hostports".into(), Chain { base: None, rules });
    let mark = KeyPart::Mark(0x2000);
    let masquerade = Stmt::Masquerade { fully_random: true };
    table.chains.insert(
        "masq".into(),
        Chain {
            base: Some(base(Hook::Postrouting, 99)),
            rules: vec![Rule::new("m", vec![Stmt::is(Field::Mark, mark), masquerade])],
        },
    );
    table.chains.insert(
        "marks".into(),
        Chain { base: None, rules: vec![Rule::new("m", vec![Stmt::Mark { bits: 0x2000 }])] },
    );
    let v4 = Stmt::is(Field::Nfproto, KeyPart::Family(Family::V4));
    let local = Stmt::is(Field::FibDaddrType, KeyPart::AddrType(2));
    let jump = Stmt::Verdict(Verdict::Jump("hostports".into()));
    table.chains.insert(
        "pre".into(),
        Chain {
            base: Some(base(Hook::Prerouting, -100)),
            rules: vec![Rule::new("local", vec![v4, local, jump])],
        },
    );
    let mut pairs = Set::map(vec![KeyType::IfName, KeyType::IfName], Vec::new());
    let br = KeyPart::IfName(name("cni0"));
    pairs.elements.insert([br.clone(), br.clone()].into(), Element::default());
    table.sets.insert("pairs".into(), pairs);
    let both = Stmt::lookup(vec![Field::IifName, Field::OifName], MatchOp::Eq, "pairs");
    table.chains.insert(
        "forward".into(),
        Chain {
            base: None,
            rules: vec![Rule::new("b", vec![both, Stmt::Verdict(Verdict::Return)])],
        },
    );
    table
}

#[test]
fn translations_are_as_nft_would_write_them() {
    check(&translations());
}

/// What is judged and how it is remembered.
fn judging(mark: u32) -> NftTable {
    let mut table = NftTable::new(NftFamily::Inet, "causeway_policy", true);
    let mut judged = Set::of(KeyType::Mark, false);
    judged.add(KeyPart::CtMark(mark), None);
    table.sets.insert("judged".into(), judged);
    let pass = || Stmt::Verdict(Verdict::Accept);
    let bits = Rhs::Bits { mask: 0xf000_0000, value: 0xc000_0000 };
    let rules = vec![
        Rule::new("1", [Stmt::lookup([Field::CtMark], MatchOp::Eq, "judged"), pass()]),
        Rule::new("2", [Stmt::is_not(Field::CtMark, KeyPart::CtMark(0)), pass()]),
        Rule::new("3", [Stmt::is_not(Field::CtMark, bits), pass()]),
        Rule::new("4", [Stmt::CtMark { mark }]),
    ];
    table.chains.insert("judge".into(), Chain { base: None, rules });
    table
}

#[test]
fn marks_of_connections_are_as_nft_would_write_them() {
    check(&judging(0xc123_4567));
}

#[test]
fn the_last_rule_alone_is_another() {
    isolated(|| {
        let (old, new) = (judging(0xc000_0001), judging(0xc000_0002));
        let id = TableId::of(&old);
        let mut nft = Nft::open().unwrap();
        nft.apply(&id, &table_ops(&old, None)).unwrap();
        let handles = || {
            let list = run(Command::new("nft").args(["-a", "list", "ruleset"]), "");
            let rules = list.lines().filter(|line| line.contains("comment"));
            rules.map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let before = handles();
        let last = |table: &NftTable| {
            let rule = table.chains["judge"].rules.last().unwrap().clone();
            NftOp::SetLastRule { chain: "judge".into(), rule }
        };
        nft.apply(&id, &[last(&new)]).unwrap();
        let have = nft.read_table(id.family, &id.name).unwrap().unwrap();
        assert_eq!(have.chains["judge"], new.chains["judge"]);
        assert_eq!(before[..3], handles()[..3]);
        let nowhere = NftOp::SetLastRule { chain: "nowhere".into(), rule: Rule::new("", []) };
        let error = nft.apply(&id, &[last(&old), nowhere]).unwrap_err().to_string();
        assert!(error.contains("step 2 of 2") && error.contains("nowhere"), "{error}");
        assert_eq!(nft.read_table(id.family, &id.name).unwrap().unwrap(), have);
    });
}
