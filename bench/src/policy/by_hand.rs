//! The same policies as others write them, loaded by hand: in each direction a jump for each pod, a chain for each
//! policy, and in it either a rule for each peer (iptables) or a set of its peers (as ipsets are used, here nftables' own).
//! Both let what is established pass before they ask anything, as is usual: a policy that changes does not
//! end a connection there.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use causeway_kernel::netns::NetNs;

use super::objects::PORTS;

/// Pods of a node, each with its jump in both directions: a kubelet's `maxPods`.
const JUMPS: usize = 110;

/// How the rules are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// A rule for each peer.
    Chains,
    /// A set for each policy.
    Sets,
}

/// A pod of the node, with the peers of each of its policies, as blocks.
pub(crate) struct Isolated<'a> {
    pub(crate) name: &'a str,
    pub(crate) address: String,
    pub(crate) policies: Vec<Vec<String>>,
}

/// Loads the rules of a node's pods.
///
/// # Errors
/// When they are refused.
pub(crate) fn load(node: &Path, manner: Manner, pods: &[Isolated<'_>]) -> Result<()> {
    let (program, args, text) = match manner {
        Manner::Chains => ("iptables-nft-restore", &["--noflush"][..], chains(pods)),
        Manner::Sets => ("nft", &["-f", "-"][..], sets(pods)),
    };
    let ns = NetNs::open(node).map_err(|e| anyhow!("{e}"))?;
    ns.run(|| feed(program, args, &text)).map_err(|e| anyhow!("{e}"))?
}

fn feed(program: &str, args: &[&str], text: &str) -> Result<()> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| program.to_owned())?;
    child.stdin.take().context("no stdin")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// What comes to pods and what they send: a name, and whether a pod and its peers are source or destination.
const DIRECTIONS: [(&str, [&str; 2], [&str; 2]); 2] =
    [("in", ["-d", "-s"], ["daddr", "saddr"]), ("out", ["-s", "-d"], ["saddr", "daddr"])];

/// The addresses of a node's pods with the chain that each one's packets go to: half of the others come before those
/// that are measured.
fn jumps(pods: &[Isolated<'_>]) -> Vec<(String, String)> {
    let other = |n: usize| (format!("10.243.0.{}", n + 1), "other".to_owned());
    let measured = pods.iter().map(|pod| (pod.address.clone(), pod.name.to_owned()));
    (0..JUMPS / 2).map(other).chain(measured).chain((JUMPS / 2..JUMPS).map(other)).collect()
}

fn chains(pods: &[Isolated<'_>]) -> String {
    let (mut names, mut rules) = (String::new(), String::new());
    rules.push_str("-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n");
    for (way, [own, _], _) in DIRECTIONS {
        let _ = writeln!(names, ":{way}-other - [0:0]");
        for (address, name) in jumps(pods) {
            let _ = writeln!(rules, "-A FORWARD {own} {address} -j {way}-{name}");
        }
    }
    let ports = format!("{}:{}", PORTS.start(), PORTS.end());
    for pod in pods {
        for (way, [_, peer], _) in DIRECTIONS {
            let chain = format!("{way}-{}", pod.name);
            let _ = writeln!(names, ":{chain} - [0:0]");
            for (n, peers) in pod.policies.iter().enumerate() {
                let _ = writeln!(names, ":{chain}-{n} - [0:0]");
                let _ = writeln!(rules, "-A {chain} -j {chain}-{n}");
                for address in peers {
                    let to = format!("{peer} {address} -p tcp --dport {ports}");
                    let _ = writeln!(rules, "-A {chain}-{n} {to} -j ACCEPT");
                }
            }
            let _ = writeln!(rules, "-A {chain} -j DROP");
        }
    }
    format!("*filter\n{names}{rules}COMMIT\n")
}

fn sets(pods: &[Isolated<'_>]) -> String {
    let (mut sets, mut policies, mut dispatch) = (String::new(), String::new(), String::new());
    let mut forward = String::from("ct state established,related accept\n");
    for (way, _, [own, _]) in DIRECTIONS {
        let _ = writeln!(dispatch, "chain {way}_other {{ }}");
        for (address, name) in jumps(pods) {
            let _ = writeln!(forward, "ip {own} {address} jump {way}_{name}");
        }
    }
    let ports = format!("tcp dport {}-{}", PORTS.start(), PORTS.end());
    for pod in pods {
        let name = pod.name;
        for (n, peers) in pod.policies.iter().enumerate() {
            let flags = if peers.iter().any(|p| p.contains('/')) { "flags interval;" } else { "" };
            let peers = peers.join(", ");
            let _ = writeln!(
                sets,
                "set {name}_{n} {{ type ipv4_addr; {flags} elements = {{ {peers} }} }}"
            );
        }
        for (way, _, [_, peer]) in DIRECTIONS {
            let _ = writeln!(dispatch, "chain {way}_{name} {{");
            for n in 0..pod.policies.len() {
                let rule = format!("ip {peer} @{name}_{n} {ports} accept");
                let _ = writeln!(policies, "chain {way}_{name}_{n} {{ {rule}; }}");
                let _ = writeln!(dispatch, "jump {way}_{name}_{n}");
            }
            dispatch.push_str("drop\n}\n");
        }
    }
    format!(
        "table inet by_hand {{\n{sets}{policies}{dispatch}\
         chain forward {{ type filter hook forward priority 0; policy accept;\n{forward}}}\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_peer_has_a_rule_or_is_in_a_set() {
        let blocks = vec!["10.1.0.0/28".to_owned(), "10.2.0.0/28".to_owned()];
        let policies = vec![blocks, vec!["10.3.0.1".to_owned()]];
        let pod = Isolated { name: "a", address: "10.0.0.1".into(), policies };
        let text = chains(std::slice::from_ref(&pod));
        assert_eq!(text.matches("-j ACCEPT").count(), 1 + 2 * 3, "{text}");
        assert_eq!(text.matches("-A FORWARD -d").count(), JUMPS + 1, "{text}");
        let text = sets(&[pod]);
        assert!(text.contains("set a_0 { type ipv4_addr; flags interval;"), "{text}");
        assert!(text.contains("set a_1 { type ipv4_addr;  elements = { 10.3.0.1 }"), "{text}");
        assert_eq!(text.matches("@a_").count(), 4, "{text}");
    }
}
