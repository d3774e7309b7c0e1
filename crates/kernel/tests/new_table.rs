//! A table that is new under traffic takes no packet that it lets pass.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use causeway_kernel::netns;
use causeway_kernel::nft::Nft;
use causeway_model::nft::{
    Base, Chain, ChainType, Field, Hook, KeyPart, KeyType, MatchOp, NftFamily, NftTable, Policy,
    Rule, Set, Stmt, Verdict,
};
use causeway_plan::{NftOp, TableId, table_ops};
use causeway_types::Family;

/// What comes from nowhere that the set names is dropped, as closed tunnels do.
fn table() -> NftTable {
    let mut table = NftTable::new(NftFamily::Inet, "cw_test", true);
    let mut set = Set::of(KeyType::Addr(Family::V4), true);
    set.add(KeyPart::Net("127.0.0.0/8".parse().unwrap()), None);
    for n in 0..200u8 {
        set.add(KeyPart::Net(format!("10.{n}.0.0/16").parse().unwrap()), None);
    }
    table.sets.insert("known".into(), set);
    let from = Stmt::lookup([Field::Saddr(Family::V4)], MatchOp::Ne, "known".to_owned());
    let rule = Rule::new("from nowhere", vec![from, Stmt::Verdict(Verdict::Drop)]);
    let base = Base {
        kind: ChainType::Filter,
        hook: Hook::Prerouting,
        priority: -300,
        device: None,
        policy: Policy::Accept,
    };
    table.chains.insert("in".into(), Chain { base: Some(base), rules: vec![rule] });
    table
}

#[test]
fn a_set_is_known_before_rules_ask_it() {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            netns::unshare_for_test().expect("needs root");
            let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
            assert!(up.unwrap().success());
            let on = AtomicBool::new(true);
            let (a, b) = (UdpSocket::bind("127.0.0.1:0"), UdpSocket::bind("127.0.0.1:0"));
            let (a, b) = (a.unwrap(), b.unwrap());
            b.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let to = b.local_addr().unwrap();
            let table = table();
            let mut nft = Nft::open().unwrap();
            let on = &on;
            let (sent, lost) = std::thread::scope(|scope| {
                let traffic = scope.spawn(move || {
                    let (mut sent, mut lost) = (0u32, 0u32);
                    let mut buffer = [0; 8];
                    while on.load(Ordering::Relaxed) {
                        a.send_to(b"x", to).unwrap();
                        sent += 1;
                        lost += u32::from(b.recv(&mut buffer).is_err());
                    }
                    (sent, lost)
                });
                for _ in 0..200 {
                    nft.apply(&TableId::of(&table), &table_ops(&table, None)).unwrap();
                    nft.apply(&TableId::of(&table), &[NftOp::DelTable]).unwrap();
                }
                on.store(false, Ordering::Relaxed);
                traffic.join().unwrap()
            });
            println!("{sent} sent, {lost} lost");
            assert!(sent > 10_000 && lost == 0, "{lost} of {sent} lost");
        });
    });
}
