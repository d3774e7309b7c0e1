//! Results in every version: `golden/results/CASE/VERSION.json` is the same result as it looks in
//! each. A case without a file for a version cannot be written in it.

use std::fs;
use std::path::{Path, PathBuf};

use causeway_cni_spec::json::object_from_slice;
use causeway_cni_spec::{CniResult, Dns, Interface, IpConfig, Route, Version, code};
use ipnet::IpNet;
use proptest::prelude::*;
use serde_json::Value;

fn cases() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/results");
    let mut cases: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 5);
    cases
}

fn golden(case: &Path, version: Version) -> Option<Value> {
    let text = fs::read(case.join(format!("{version}.json"))).ok()?;
    Some(serde_json::from_slice(&text).unwrap())
}

fn read(value: &Value) -> CniResult {
    CniResult::from_object(value.as_object().unwrap(), Version::NEWEST, "prevResult").unwrap()
}

#[test]
fn the_newest_form_is_written_in_every_version() {
    for case in cases() {
        let result = read(&golden(&case, Version::NEWEST).unwrap());
        for version in Version::ALL {
            match golden(&case, version) {
                Some(expected) => {
                    assert_eq!(result.to_value(version).unwrap(), expected, "{case:?} {version}");
                }
                None => {
                    let error = result.to_value(version).unwrap_err();
                    assert_eq!(error.code, code::UNSUPPORTED_FIELD, "{case:?} {version}");
                }
            }
        }
    }
}

#[test]
fn every_form_is_read_and_written_again() {
    for case in cases() {
        for version in Version::ALL {
            let Some(form) = golden(&case, version) else { continue };
            assert_eq!(read(&form).to_value(version).unwrap(), form, "{case:?} {version}");
        }
    }
}

/// Older forms read into newer ones: what they cannot say is missing, the rest is the same.
#[test]
fn older_forms_become_newer_ones() {
    for case in cases() {
        let newest = read(&golden(&case, Version::NEWEST).unwrap());
        for version in Version::ALL.into_iter().filter(|v| *v < Version::V1_1_0) {
            let Some(form) = golden(&case, version) else { continue };
            let got = read(&form);
            assert_eq!(got.dns, newest.dns, "{case:?} {version}");
            if version.is_legacy() {
                assert!(got.interfaces.is_empty());
                assert!(got.ips.iter().all(|ip| ip.interface.is_none()));
                assert_eq!(got.ips[0].address, newest.ips[0].address);
            } else {
                assert_eq!(got.ips, newest.ips, "{case:?} {version}");
                assert_eq!(got.interfaces.len(), newest.interfaces.len());
            }
            let routes = |r: &CniResult| r.routes.iter().map(|r| (r.dst, r.gw)).collect::<Vec<_>>();
            assert_eq!(routes(&got), routes(&newest), "{case:?} {version}");
        }
    }
}

#[test]
fn a_result_without_version_has_that_of_the_configuration() {
    let text = br#"{"ip4":{"ip":"10.1.0.2/16"}}"#;
    let object = object_from_slice(text, "").unwrap();
    let legacy = CniResult::from_object(&object, Version::V0_2_0, "prevResult").unwrap();
    assert_eq!(legacy.ips[0].address.to_string(), "10.1.0.2/16");
    let current = CniResult::from_object(&object, Version::V1_0_0, "prevResult").unwrap();
    assert!(current.ips.is_empty());
}

/// Go prints unset fields in many ways.
#[test]
fn what_go_writes_for_nothing_is_nothing() {
    let text = br#"{"cniVersion":"0.3.1","interfaces":null,"routes":null,"dns":null,
        "ips":[{"version":"4","interface":-1,"address":"10.1.0.2/16","gateway":""}]}"#;
    let result = CniResult::from_slice(text, Version::NEWEST).unwrap();
    assert_eq!(result.ips, [IpConfig::new("10.1.0.2/16".parse().unwrap(), None)]);
    assert!(result.dns.is_empty() && result.interfaces.is_empty());
}

#[test]
fn the_containers_addresses_are_those_with_a_sandbox() {
    let mut result = read(&golden(&cases()[0], Version::NEWEST).unwrap());
    result.ips[1].interface = Some(0);
    assert_eq!(result.container_ips().count(), 1);
    result.ips[0].interface = Some(99);
    assert_eq!(result.container_ips().count(), 0);
    result.ips[0].interface = None;
    assert_eq!(result.container_ips().count(), 1);
}

fn net() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (any::<u32>(), 0u8..=32).prop_map(|(a, len)| IpNet::new(
            std::net::Ipv4Addr::from(a).into(),
            len
        )
        .unwrap()),
        (1u128 << 64.., 0u8..=128).prop_map(|(a, len)| IpNet::new(
            std::net::Ipv6Addr::from(a).into(),
            len
        )
        .unwrap()),
    ]
}

fn result() -> impl Strategy<Value = CniResult> {
    let text = "[a-z0-9]{0,8}";
    let interface = (text, text, prop::option::of(0u32..70000), text, text, text).prop_map(
        |(name, mac, mtu, sandbox, socket_path, pci_id)| Interface {
            name,
            mac,
            mtu,
            sandbox,
            socket_path,
            pci_id,
        },
    );
    let ip = (prop::option::of(0u32..3), net(), prop::option::of(net())).prop_map(
        |(interface, address, gateway)| IpConfig {
            interface,
            address,
            gateway: gateway.map(|g| g.addr()),
        },
    );
    let number = || prop::option::of(any::<u32>());
    let route = (net(), prop::option::of(net()), number(), number(), number(), any::<Option<u8>>())
        .prop_map(|(dst, gw, mtu, priority, table, scope)| Route {
            mtu,
            advmss: mtu,
            priority,
            table,
            scope,
            ..Route::new(dst, gw.map(|g| g.addr()))
        });
    let words = || prop::collection::vec(text, 0..3);
    let dns =
        (words(), text, words(), words()).prop_map(|(nameservers, domain, search, options)| Dns {
            nameservers,
            domain,
            search,
            options,
        });
    (
        prop::collection::vec(interface, 0..3),
        prop::collection::vec(ip, 0..4),
        prop::collection::vec(route, 0..4),
        dns,
    )
        .prop_map(|(interfaces, ips, routes, dns)| CniResult { interfaces, ips, routes, dns })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The newest form loses nothing; every older one, once written, loses nothing more.
    #[test]
    fn round_trips(result in result()) {
        let newest = result.to_json(Version::NEWEST).unwrap();
        prop_assert_eq!(&CniResult::from_slice(newest.as_bytes(), Version::V0_1_0).unwrap(), &result);
        for version in Version::ALL {
            let Ok(written) = result.to_json(version) else {
                prop_assert!(version.is_legacy() && result.ips.is_empty());
                continue;
            };
            let back = CniResult::from_slice(written.as_bytes(), Version::V0_1_0).unwrap();
            prop_assert_eq!(back.to_json(version).unwrap(), written);
        }
    }

    /// No input makes the reader panic.
    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = CniResult::from_slice(&bytes, Version::NEWEST);
    }
}
