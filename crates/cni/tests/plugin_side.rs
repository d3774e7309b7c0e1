//! What a plugin reads from a good call, and how it answers VERSION.

use causeway_cni_spec::runtime_config::{Bandwidth, PortMapping};
use causeway_cni_spec::{
    AttachmentId, CniArgs, Command, Env, HostLocal, NetConf, Version, version,
};
use serde::Deserialize;
use serde_json::{Value, json};

fn parse(conf: &Value) -> NetConf {
    NetConf::parse(conf.to_string().as_bytes(), Command::Add, &Version::ALL).unwrap()
}

/// The configuration of every tutorial, to the last key.
#[test]
fn the_tutorials_configuration() {
    let text = br#"{"cniVersion":"0.3.1","name":"pod-network","type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,"ipam":{"type":"host-local","subnet":"10.244.0.0/16","routes":[{"dst":"0.0.0.0/0"}]}}"#;
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Own {
        bridge: String,
        is_gateway: bool,
        ip_masq: bool,
    }
    let conf = NetConf::parse(text, Command::Add, &Version::ALL).unwrap();
    assert_eq!((conf.cni_version, conf.name.as_str()), (Version::V0_3_1, "pod-network"));
    let own: Own = conf.fields().unwrap();
    assert_eq!((own.bridge.as_str(), own.is_gateway, own.ip_masq), ("cni0", true, true));
    let ipam = HostLocal::parse(&conf, &CniArgs::default()).unwrap();
    assert_eq!(ipam.sets[0].to_string(), "10.244.0.1-10.244.255.254");
    assert_eq!(ipam.routes[0].dst.to_string(), "0.0.0.0/0");
    assert_eq!(ipam.lease_dir().display().to_string(), "/var/lib/cni/networks/pod-network");
    assert_eq!(ipam.resolv_conf, None);
}

#[test]
fn what_the_runtime_passes_in() {
    let conf = parse(&json!({
        "cniVersion": "1.1.0", "name": "net", "type": "causeway", "prevResult": null,
        "runtimeConfig": {
            "portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": ""},
                {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "fd00::1"},
                {"containerPort": 9}],
            "bandwidth": {"ingressRate": 1000, "ingressBurst": 2000, "unshapedSubnets": ["10.0.0.0/8"]},
            "mac": "c2:11:22:33:44:55", "ips": ["10.0.0.7/24"], "aliases": null, "future": {"a": 1}},
        "args": {"cni": {"mac": "c2:00:00:00:00:01"}},
        "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}],
    }));
    let runtime = &conf.runtime_config;
    let mapping = |host_port, container_port, protocol: &str, ip: Option<&str>| PortMapping {
        host_port,
        container_port,
        protocol: protocol.into(),
        host_ip: ip.map(|ip| ip.parse().unwrap()),
    };
    let expected = [
        mapping(8080, 80, "TCP", None),
        mapping(53, 53, "udp", Some("fd00::1")),
        mapping(0, 9, "", None),
    ];
    assert_eq!(runtime.port_mappings, expected);
    assert_eq!(
        runtime.port_mappings.iter().map(PortMapping::protocol).collect::<Vec<_>>(),
        ["tcp", "udp", "tcp"]
    );
    let bandwidth = Bandwidth {
        ingress_rate: 1000,
        ingress_burst: 2000,
        unshaped_subnets: vec!["10.0.0.0/8".parse().unwrap()],
        ..Bandwidth::default()
    };
    assert_eq!(runtime.bandwidth.as_ref(), Some(&bandwidth));
    assert_eq!(conf.args_cni_key::<String>("mac").unwrap().as_deref(), Some("c2:00:00:00:00:01"));
    assert_eq!(runtime.mac.as_deref(), Some("c2:11:22:33:44:55"));
    let kept = [AttachmentId { container_id: "c1".into(), ifname: "eth0".into() }];
    assert_eq!(conf.gc_attachments().unwrap(), kept);
    assert_eq!(conf.prev_result, None);
    assert_eq!(conf.raw["runtimeConfig"]["future"]["a"], 1);
}

/// As containerd 1.6 writes it (go-cni 1.1, whose structs name no keys).
#[test]
fn containerd_names_keys_as_go_names_fields() {
    let conf = parse(&json!({
        "cniVersion": "1.0.0", "name": "net", "type": "causeway",
        "runtimeConfig": {
            "portMappings": [{"HostPort": 18080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": "::1"}],
            "bandwidth": {"IngressRate": 80, "IngressBurst": 4_294_967_295u64, "EgressRate": 40,
                "EgressBurst": 4_294_967_295u64},
            "ipRanges": [[{"Subnet": "10.1.0.0/24", "RangeStart": "10.1.0.4", "RangeEnd": "",
                "Gateway": "10.1.0.1"}]],
            "dns": {"Servers": ["10.96.0.10"], "Searches": ["svc"], "Options": ["ndots:5"]}},
    }));
    let runtime = &conf.runtime_config;
    let mapping = PortMapping {
        host_port: 18080,
        container_port: 80,
        protocol: "tcp".into(),
        host_ip: Some("::1".parse().unwrap()),
    };
    assert_eq!(runtime.port_mappings, [mapping]);
    let bandwidth = runtime.bandwidth.as_ref().unwrap();
    assert_eq!((bandwidth.ingress_rate, bandwidth.egress_rate), (80, 40));
    assert_eq!(
        (bandwidth.ingress_burst, bandwidth.egress_burst),
        (u32::MAX.into(), u32::MAX.into())
    );
    let range = &runtime.ip_ranges[0][0];
    assert_eq!(range.subnet, Some("10.1.0.0/24".parse().unwrap()));
    assert_eq!(range.range_start, Some("10.1.0.4".parse().unwrap()));
    assert_eq!((range.range_end, range.gateway), (None, Some("10.1.0.1".parse().unwrap())));
    let dns = runtime.dns.as_ref().unwrap();
    assert_eq!((&dns.servers[0], &dns.searches[0]), (&"10.96.0.10".into(), &"svc".into()));
    assert_eq!(dns.options, ["ndots:5"]);
}

#[test]
fn host_local_reads_all_places_in_order() {
    let conf = parse(&json!({
        "cniVersion": "1.0.0", "name": "net", "type": "bridge",
        "ipam": {"type": "host-local", "subnet": "10.2.0.0/24", "gateway": "10.2.0.254",
            "dataDir": "/tmp/x", "resolvConf": "/etc/resolv.conf",
            "ranges": [[{"subnet": "fd00::/64", "rangeStart": "fd00::100"}]]},
        "runtimeConfig": {"ipRanges": [[{"subnet": "10.1.0.0/24", "rangeEnd": "10.1.0.9"}]], "ips": ["10.1.0.5/24"]},
        "args": {"cni": {"ips": ["fd00::101", "10.1.0.5"]}},
    }));
    let args = CniArgs::parse("IgnoreUnknown=1;IP=10.2.0.7;K8S_POD_NAME=web;MAC=aa:bb:cc:dd:ee:ff")
        .unwrap();
    let ipam = HostLocal::parse(&conf, &args).unwrap();
    let sets: Vec<_> = ipam.sets.iter().map(ToString::to_string).collect();
    let expected =
        ["10.1.0.1-10.1.0.9", "10.2.0.1-10.2.0.254", "fd00::100-fd00::ffff:ffff:ffff:ffff"];
    assert_eq!(sets, expected);
    assert_eq!(ipam.sets[1].ranges()[0].gateway().unwrap().to_string(), "10.2.0.254");
    let requested: Vec<_> = ipam.requested.iter().map(ToString::to_string).collect();
    assert_eq!(requested, ["10.2.0.7", "fd00::101", "10.1.0.5"]);
    assert_eq!(ipam.lease_dir().display().to_string(), "/tmp/x/net");
    assert_eq!((args.pod_name(), args.pod_namespace()), (Some("web"), None));
    assert_eq!(args.mac.as_deref(), Some("aa:bb:cc:dd:ee:ff"));
}

#[test]
fn the_environment_of_each_command() {
    let env = Env::parse(|name| match name {
        "CNI_COMMAND" => Some("DEL".into()),
        "CNI_CONTAINERID" => Some("c1".into()),
        "CNI_IFNAME" => Some("eth0".into()),
        "CNI_PATH" => Some("/a::/b".into()),
        "CNI_NETNS_OVERRIDE" => Some("TRUE".into()),
        _ => None,
    })
    .unwrap();
    assert_eq!((env.command, env.netns.clone(), env.netns_override), (Command::Del, None, true));
    assert_eq!(env.path, ["/a", "/b"].map(std::path::PathBuf::from));
    assert!(env.require_netns().is_err());
    let version = Env::parse(|name| (name == "CNI_COMMAND").then(|| "VERSION".into())).unwrap();
    assert_eq!(version.command, Command::Version);
    assert!(!Env::is_plugin_call(|_| None));
}

#[test]
fn version_is_always_answered() {
    let some = &Version::ALL[2..];
    let listed = json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    for (stdin, version) in [
        (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"),
        (r#"{"cniVersion":"0.2.0"}"#, "1.1.0"),
        (r#"{"cniVersion":"7.0.0"}"#, "1.1.0"),
        ("", "1.1.0"),
        ("junk", "1.1.0"),
    ] {
        let expected = json!({"cniVersion": version, "supportedVersions": listed});
        assert_eq!(version::reply(stdin.as_bytes(), some), expected);
    }
}
