//! Faults on purpose: what goes wrong in clusters, done to a lab. Where a fault is a change of the
//! kernel's state, it is made by the very commands that it prints.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};
use causeway_types::Family;
use http::Method;
use serde_json::{Value, json};

use crate::agents::Action;
use crate::api::FaultSettings;
use crate::client::Client;
use crate::probe::inside;
use crate::spec::Spec;

/// Something that can be made to go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// All running watches of the API end, once.
    Cut,
    /// The API closes connections at once.
    Down,
    /// The API accepts requests and does not answer; watches are silent.
    Stall,
    /// Watches are silent, while requests are answered.
    WatchStall,
    /// Watches and lists of a given version get `410 Gone`.
    Gone,
    /// Every request gets `429 Too Many Requests`.
    TooMany,
    /// Every answer is held back.
    Slow,
    /// SIGKILL to a node's agent; it is started again, as a DaemonSet's is.
    AgentKilled,
    /// SIGKILL to the next plugins that run on a node, at a random moment.
    PluginKilled,
    /// A node loses power and boots: processes and namespaces gone, `/run` empty, a new boot ID.
    Rebooted,
    /// A node gets another address.
    AddressChanged,
    /// Somebody deletes Causeway's routes on a node.
    RouteDeleted,
    /// Somebody flushes the whole nftables ruleset of a node.
    NftFlushed,
    /// The underlay drops large packets at a node's port and tells nobody.
    MtuBlackHole,
    /// The wall clock that a node's agent sees jumps.
    ClockJump,
}

/// The particulars of a fault; each uses those that concern it.
#[derive(Clone, Debug, PartialEq)]
pub struct How {
    /// The node.
    pub node: String,
    /// How long what ends by itself lasts, in seconds.
    pub seconds: f64,
    /// Latency of a slow API in milliseconds.
    pub latency_ms: u64,
    /// The largest packet that a black hole lets through, in bytes.
    pub bytes: u16,
    /// Seconds by which a clock jumps, from the true time.
    pub jump_seconds: i64,
    /// How many plugins are killed.
    pub times: u32,
}

impl Default for How {
    fn default() -> Self {
        Self {
            node: "node-1".into(),
            seconds: 30.0,
            latency_ms: 1000,
            bytes: 1400,
            jump_seconds: 3600,
            times: 1,
        }
    }
}

impl Fault {
    /// All of them, in the order in which they are listed.
    pub const ALL: [Fault; 15] = [
        Fault::Cut,
        Fault::Down,
        Fault::Stall,
        Fault::WatchStall,
        Fault::Gone,
        Fault::TooMany,
        Fault::Slow,
        Fault::AgentKilled,
        Fault::PluginKilled,
        Fault::Rebooted,
        Fault::AddressChanged,
        Fault::RouteDeleted,
        Fault::NftFlushed,
        Fault::MtuBlackHole,
        Fault::ClockJump,
    ];

    /// The word for it on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Cut => "cut",
            Fault::Down => "down",
            Fault::Stall => "stall",
            Fault::WatchStall => "watch-stall",
            Fault::Gone => "410",
            Fault::TooMany => "429",
            Fault::Slow => "slow",
            Fault::AgentKilled => "agent-killed",
            Fault::PluginKilled => "plugin-killed",
            Fault::Rebooted => "rebooted",
            Fault::AddressChanged => "address-changed",
            Fault::RouteDeleted => "route-deleted",
            Fault::NftFlushed => "nft-flushed",
            Fault::MtuBlackHole => "mtu-black-hole",
            Fault::ClockJump => "clock-jump",
        }
    }

    /// What happens, and how it ends.
    pub fn about(self) -> &'static str {
        match self {
            Fault::Cut => "all running watches of the API end, once",
            Fault::Down => "the API closes every connection, for --seconds",
            Fault::Stall => "the API takes requests and does not answer, for --seconds",
            Fault::WatchStall => {
                "watches of the API are silent, for --seconds; requests are answered"
            }
            Fault::Gone => "watches and lists of a known version get 410 Gone, for --seconds",
            Fault::TooMany => "every request gets 429 Too Many Requests, for --seconds",
            Fault::Slow => "every answer of the API comes --latency-ms late, until `clear`",
            Fault::AgentKilled => "SIGKILL to the agent of --node; it is started again",
            Fault::PluginKilled => {
                "SIGKILL to the next --times plugins run on --node, at a random moment of each"
            }
            Fault::Rebooted => {
                "--node loses power and boots: processes and namespaces gone, /run empty, a new boot \
                 ID; no DEL was ever called"
            }
            Fault::AddressChanged => "--node gets another address, and its Node object says so",
            Fault::RouteDeleted => "somebody deletes Causeway's routes on --node",
            Fault::NftFlushed => "somebody flushes the whole nftables ruleset of --node",
            Fault::MtuBlackHole => {
                "the underlay drops packets of more than --bytes to and from --node and tells nobody, \
                 until `clear`"
            }
            Fault::ClockJump => {
                "the wall clock that the agent of --node sees jumps by --jump-seconds, until `clear`"
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Fault {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|f| f.name() == text).with_context(|| {
            let all: Vec<&str> = Self::ALL.iter().map(|f| f.name()).collect();
            format!("there is no fault {text:?}; there are: {}", all.join(", "))
        })
    }
}

/// Where the API's faults are set.
const SETTINGS: &str = "/causeway.lab/faults";

/// Makes something go wrong; `tell` hears what is done, and what to look at.
///
/// # Errors
/// When the lab or the node is not there, the fault cannot be had on this machine, or a command
/// fails: then with its words.
pub fn inflict(spec: &Spec, fault: Fault, how: &How, tell: &mut dyn FnMut(&str)) -> Result<()> {
    let client = Client::open(&spec.name)?;
    let lab = Lab { spec, client: &client, node: &how.node };
    spec.check_node(&how.node)?;
    match fault {
        Fault::Cut
        | Fault::Down
        | Fault::Stall
        | Fault::WatchStall
        | Fault::Gone
        | Fault::TooMany
        | Fault::Slow => {
            let settings = settings(fault, how)?;
            client.put(SETTINGS, &json!(settings))?;
            tell(fault.about());
        }
        Fault::AgentKilled => {
            lab.agent(Action::Kill)?;
            tell(&format!("the agent of {} was killed; it is started again", how.node));
        }
        Fault::PluginKilled => {
            lab.control(&format!("plugins/kill/{}", how.times))?;
            tell(&format!("the next {} plugins on {} will be killed", how.times, how.node));
        }
        Fault::Rebooted => {
            lab.control("reboot")?;
            tell(&format!("{} has lost power, and has booted", how.node));
        }
        Fault::AddressChanged => lab.change_addresses(tell)?,
        Fault::RouteDeleted => {
            lab.on_node("ip route flush proto 203; ip -6 route flush proto 203", tell)?;
        }
        Fault::NftFlushed => lab.on_node("nft flush ruleset", tell)?,
        Fault::MtuBlackHole => lab.black_hole(how.bytes, tell)?,
        Fault::ClockJump => {
            lab.control(&format!("clock/{}", how.jump_seconds))?;
            tell(&format!(
                "the clock of the agent of {} is {} s from the true time",
                how.node, how.jump_seconds
            ));
        }
    }
    Ok(())
}

/// Ends the faults that last: those of the API, black holes, false clocks.
///
/// # Errors
/// As [`inflict`].
pub fn clear(spec: &Spec, tell: &mut dyn FnMut(&str)) -> Result<()> {
    let client = Client::open(&spec.name)?;
    client.put(SETTINGS, &json!(FaultSettings::default()))?;
    let clocks: Value = client.control(Method::GET, "/clocks")?;
    for node in spec.node_names() {
        let lab = Lab { spec, client: &client, node: &node };
        lab.no_black_hole(tell)?;
        if clocks.get(&node).is_some() {
            lab.control("clock/0")?;
        }
    }
    Ok(())
}

fn settings(fault: Fault, how: &How) -> Result<FaultSettings> {
    if !(how.seconds > 0.0 && how.seconds.is_finite()) {
        bail!("{} seconds: give a positive number", how.seconds);
    }
    let seconds = how.seconds;
    let none = FaultSettings::default();
    Ok(match fault {
        Fault::Cut => FaultSettings { cut_watches: true, ..none },
        Fault::Down => FaultSettings { refuse_seconds: seconds, ..none },
        Fault::Stall => FaultSettings { stall_seconds: seconds, ..none },
        Fault::WatchStall => FaultSettings { watch_stall_seconds: seconds, ..none },
        Fault::Gone => FaultSettings { gone_seconds: seconds, ..none },
        Fault::TooMany => FaultSettings { too_many_requests_seconds: seconds, ..none },
        Fault::Slow => FaultSettings { latency_ms: how.latency_ms, ..none },
        _ => none,
    })
}

struct Lab<'a> {
    spec: &'a Spec,
    client: &'a Client,
    node: &'a str,
}

impl Lab<'_> {
    fn agent(&self, action: Action) -> Result<()> {
        let word = json!(action);
        let word = word.as_str().unwrap_or_default();
        self.client.control(Method::POST, &format!("/agents/{}/{word}", self.node)).map(drop)
    }

    fn control(&self, what: &str) -> Result<()> {
        self.client.control(Method::POST, &format!("/nodes/{}/{what}", self.node)).map(drop)
    }

    fn on_node(&self, line: &str, tell: &mut dyn FnMut(&str)) -> Result<()> {
        tell(&format!("{}: {line}", self.node));
        shell(&self.spec.dirs().netns(self.node), line)
    }

    fn in_underlay(&self, line: &str, tell: &mut dyn FnMut(&str)) -> Result<()> {
        tell(&format!("underlay: {line}"));
        shell(&self.spec.dirs().netns("net"), line)
    }

    /// A new address of each family, as after a new DHCP lease, then what the node's kubelet says.
    fn change_addresses(&self, tell: &mut dyn FnMut(&str)) -> Result<()> {
        let path = format!("/api/v1/nodes/{}", self.node);
        let mut object = self.client.get(&path)?;
        let taken = self.client.get("/api/v1/nodes")?.to_string();
        let old: Vec<IpAddr> = object["status"]["addresses"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|a| a["type"] == "InternalIP")
            .filter_map(|a| a["address"].as_str()?.parse().ok())
            .collect();
        let mut addresses = vec![json!({"type": "Hostname", "address": self.node})];
        for old in old {
            let family = Family::of(old);
            let (new, len) = self
                .spec
                .spare_addrs(self.node, family)
                .find(|a| !taken.contains(&format!("\"{}\"", a.addr())))
                .map(|a| (a.addr(), a.prefix_len()))
                .context("no address of the node's subnet is left")?;
            let router = Spec::router_addr(self.spec.subnet_of(self.node), family).addr();
            let nodad = if family == Family::V6 { " nodad" } else { "" };
            self.on_node(
                &format!(
                    "ip addr del {old}/{len} dev eth0; ip addr add {new}/{len} dev eth0{nodad}; \
                     ip route replace default via {router}"
                ),
                tell,
            )?;
            addresses.push(json!({"type": "InternalIP", "address": new}));
        }
        object["status"]["addresses"] = addresses.into();
        tell(&format!("Node {}: status.addresses", self.node));
        self.client.put(&format!("{path}/status"), &object).map(drop)
    }

    /// A switch forwards nothing that is larger than its port's MTU, and sends no ICMP: it is no
    /// router. Packets that stand for several (GSO) would pass by the length of one of them, so
    /// none is sent while the hole is there.
    fn black_hole(&self, bytes: u16, tell: &mut dyn FnMut(&str)) -> Result<()> {
        let mtu = self.spec.mtu.get();
        if u32::from(bytes) >= mtu || bytes < 1280 {
            bail!("a black hole for more than {bytes} bytes: give 1280 to {}", mtu - 1);
        }
        let node = self.node;
        // The kernel leaves room for a VLAN tag (`__is_skb_forwardable`).
        let mtu = bytes - 4;
        self.in_underlay(&format!("ip link set {node} mtu {mtu} gso_max_segs 1"), tell)?;
        self.on_node("ip link set eth0 gso_max_segs 1", tell)
    }

    fn no_black_hole(&self, tell: &mut dyn FnMut(&str)) -> Result<()> {
        let mtu = inside(&self.spec.dirs().netns("net"), || mtu_of(self.node))?;
        let right = self.spec.mtu.get();
        if mtu == right {
            return Ok(());
        }
        let node = self.node;
        self.in_underlay(&format!("ip link set {node} mtu {right} gso_max_segs 65535"), tell)?;
        self.on_node("ip link set eth0 gso_max_segs 65535", tell)
    }
}

/// MTU in bytes of a link of this network namespace.
fn mtu_of(link: &str) -> Result<u32> {
    let text = output(&format!("ip -j link show {link}"))?;
    let all: Value = serde_json::from_slice(&text).context("`ip -j link` printed no JSON")?;
    let mtu = all[0]["mtu"].as_u64().and_then(|m| u32::try_from(m).ok());
    mtu.with_context(|| format!("{link} has no MTU"))
}

fn shell(ns: &Path, line: &str) -> Result<()> {
    inside(ns, || output(line).map(drop))
}

/// Runs a shell line whose last command must succeed.
fn output(line: &str) -> Result<Vec<u8>> {
    let output = Command::new("sh").args(["-c", line]).output().context("run sh")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        return Err(anyhow!("{line}: {said}"));
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for fault in Fault::ALL {
            assert_eq!(fault.name().parse::<Fault>().unwrap(), fault);
        }
        let error = "flood".parse::<Fault>().unwrap_err().to_string();
        assert!(error.contains("cut, down, stall, watch-stall, 410"), "{error}");
    }

    #[test]
    fn a_time_must_be_one() {
        for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(settings(Fault::Down, &How { seconds, ..How::default() }).is_err());
        }
    }
}
