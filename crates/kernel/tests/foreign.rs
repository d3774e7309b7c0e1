//! Chains of others that drop forwarded packets, as iptables and nft make them.

mod common;

use std::process::Command;

use causeway_kernel::Handle;
use causeway_model::nft::foreign::Dropping;
use causeway_types::Family;
use common::start;

/// Runs a shell line; it must succeed.
fn sh(line: &str) {
    let out = Command::new("sh").args(["-ec", line]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{line}: {said}; apt-get install iptables nftables");
}

fn dropping(handle: &mut Handle) -> Vec<Dropping> {
    let nft = handle.nft().unwrap();
    let mut all = nft.dropping(&Family::BOTH).unwrap();
    all.iter_mut().for_each(|chain| nft.follow(chain).unwrap());
    all
}

fn one(handle: &mut Handle) -> Dropping {
    let mut all = dropping(handle);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

fn passes(chain: &Dropping, net: &str) -> bool {
    chain.lets_pass(net.parse().unwrap())
}

/// What the commands open, and no more, for prefixes of any length.
#[test]
fn the_commands_of_a_chain_open_it() {
    let mut handle = start();
    for (make, nets) in [
        ("iptables -P FORWARD DROP", ["10.244.0.0/16", "10.32.0.0/12", "172.16.1.128/27"]),
        ("iptables -P FORWARD DROP", ["10.244.1.7/32", "10.0.0.0/8", "192.168.0.0/23"]),
        ("ip6tables -P FORWARD DROP", ["fd00:10:244::/48", "fd00:1::/61", "fd00::7/128"]),
        (
            "nft add table inet fw; \
             nft add chain inet fw f '{ type filter hook forward priority 0; policy drop; }'",
            ["10.244.0.0/17", "fd00:10:244::/49", "fd00::9/128"],
        ),
    ] {
        sh(make);
        let chain = one(&mut handle);
        assert!(chain.all && chain.dockers_alone, "{chain:?}");
        for net in nets {
            assert!(!passes(&one(&mut handle), net), "{net}");
            let [first, second] = &chain.commands(&[net.parse().unwrap()])[..] else {
                panic!("{chain:?}");
            };
            sh(first);
            assert!(!passes(&one(&mut handle), net), "one way alone");
            sh(second);
            let open = one(&mut handle);
            assert!(passes(&open, net), "{net}: {open:?}");
            assert!(!open.all && !open.dockers_alone);
            let own: Vec<_> =
                open.accepted.iter().filter(|a| a.net == net.parse().unwrap()).collect();
            assert_eq!(own.len(), 2, "{open:?}");
        }
        sh("nft flush ruleset");
    }
}

/// The rules that Docker 20 to 28 puts there.
#[test]
fn docker_accepts_its_own_alone() {
    let mut handle = start();
    sh("iptables -P FORWARD DROP
        for c in DOCKER DOCKER-USER DOCKER-ISOLATION-STAGE-1 DOCKER-ISOLATION-STAGE-2; do iptables -N $c; done
        iptables -A FORWARD -j DOCKER-USER
        iptables -A FORWARD -j DOCKER-ISOLATION-STAGE-1
        iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
        iptables -A FORWARD -o docker0 -j DOCKER
        iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
        iptables -A FORWARD -i br-0123456789ab -o br-0123456789ab -j ACCEPT
        iptables -A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp --dport 80 -j ACCEPT
        iptables -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
        iptables -A DOCKER-ISOLATION-STAGE-1 -j RETURN
        iptables -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
        iptables -A DOCKER-USER -j RETURN");
    let chain = one(&mut handle);
    assert!(chain.is_docker() && chain.dockers_alone && !chain.all, "{chain:?}");
    assert!(!passes(&chain, "10.244.1.0/24"));
    // Where Docker's users are told to put their own.
    sh("iptables -I DOCKER-USER -s 10.244.0.0/16 -j ACCEPT
        iptables -I DOCKER-USER -d 10.244.0.0/16 -j ACCEPT");
    let chain = one(&mut handle);
    assert!(passes(&chain, "10.244.1.0/24") && !chain.dockers_alone, "{chain:?}");
}

#[test]
fn what_asks_for_more_opens_nothing() {
    let mut handle = start();
    sh("iptables -P FORWARD DROP
        iptables -N sometimes
        iptables -A FORWARD -p tcp -j sometimes
        iptables -A sometimes -s 10.1.0.0/16 -j ACCEPT
        iptables -A sometimes -d 10.1.0.0/16 -j ACCEPT
        iptables -A FORWARD -s 10.1.0.0/16 -i eth0 -j ACCEPT
        iptables -A FORWARD ! -d 10.1.0.0/16 -j ACCEPT
        iptables -A FORWARD -d 10.1.0.0/16 -m conntrack --ctstate ESTABLISHED -j ACCEPT");
    let chain = one(&mut handle);
    assert_eq!(chain.accepted, [], "{chain:?}");
    assert!(!chain.dockers_alone && !chain.all);
    // Without condition it counts, also behind two chains.
    sh("iptables -N always; iptables -A FORWARD -j always; iptables -A always -j sometimes");
    assert!(passes(&one(&mut handle), "10.1.2.0/24"));
    // And what accepts everything opens for everybody.
    sh("iptables -F; iptables -A FORWARD -j ACCEPT");
    assert!(passes(&one(&mut handle), "10.1.2.0/24"));
}

/// firewalld accepts by policy and rejects by its last rule; a source of a zone is asked for in
/// chains that it leads to.
#[test]
fn firewalld_with_a_source_in_a_zone() {
    let mut handle = start();
    sh("nft add table inet firewalld
        nft add chain inet firewalld filter_FORWARD '{ type filter hook forward priority 10; policy accept; }'
        nft add chain inet firewalld filter_FORWARD_POLICIES
        nft add chain inet firewalld filter_FWD_trusted
        nft add rule inet firewalld filter_FWD_trusted accept
        nft add rule inet firewalld filter_FORWARD ct state established,related accept
        nft add rule inet firewalld filter_FORWARD jump filter_FORWARD_POLICIES
        nft add rule inet firewalld filter_FORWARD reject");
    assert!(!passes(&one(&mut handle), "10.244.1.0/24"));
    sh("nft add rule inet firewalld filter_FORWARD_POLICIES ip saddr 10.244.0.0/16 oifname eth0 \
        goto filter_FWD_trusted");
    let chain = one(&mut handle);
    assert!(passes(&chain, "10.244.1.0/24") && !passes(&chain, "10.245.0.0/24"), "{chain:?}");
    assert!(!passes(&chain, "fd00:10:244::/64"));
    sh("nft add rule inet firewalld filter_FORWARD_POLICIES ip6 daddr fd00:10:244::/48 \
        goto filter_FWD_trusted");
    assert!(passes(&one(&mut handle), "fd00:10:244:1::/64"));
}

#[test]
fn ours_and_those_that_accept_are_none() {
    let mut handle = start();
    sh("iptables -P FORWARD ACCEPT
        nft add table inet causeway
        nft add chain inet causeway f '{ type filter hook forward priority 0; policy drop; }'
        nft add table inet x
        nft add chain inet x f '{ type filter hook input priority 0; policy drop; }'");
    assert_eq!(dropping(&mut handle), []);
    let chains = handle.nft().unwrap().chains().unwrap();
    assert!(chains.iter().any(|c| c.table == "filter" && c.chain == "FORWARD"), "{chains:?}");
}
