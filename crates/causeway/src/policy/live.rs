//! `causeway policy explain --live` and `--probe`: what this node's kernel makes of a connection, by its
//! tables and by a real packet.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use causeway_agent::client;
use causeway_enforce::trace::{self, NEW, Packet};
use causeway_kernel::NetNs;
use causeway_kernel::nft::Nft;
use causeway_kernel::probe::{self, Answer};
use causeway_lab::Ask;
use causeway_model::nft::{Hook, NftFamily, NftTable};
use causeway_policy::explain::Explanation;
use causeway_policy::{Protocol, Transport, Who, World};
use causeway_types::names;
use causeway_types::state::AttachmentRecord;
use serde::Serialize;

use super::drops;

/// How long an answer to a probe may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// The kernel gathers what it tells of drops for a moment.
const TOLD_AFTER: Duration = Duration::from_millis(300);
/// What is said when nothing comes back.
const SILENT: &str = "no answer";
/// A port that is given to clients, as a rule.
const CLIENT_PORT: u16 = 40_000;

/// This node: its table of policies, and its pods.
pub(super) struct Node {
    table: Option<NftTable>,
    pods: BTreeSet<IpAddr>,
    socket: PathBuf,
}

/// What was found about one connection.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Found {
    /// The kernel's table lets it pass, as far as this node's pods are concerned.
    kernel: Option<bool>,
    /// What is said of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel_says: Option<String>,
    /// The elements and rules by which.
    steps: Vec<String>,
    /// What came of a real packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    probe: Option<String>,
    /// It is not as the policies say.
    pub(super) differs: bool,
}

impl Node {
    /// Reads the table of the network namespace that this runs in, which is to be the node's.
    pub(super) fn read(socket: &Path) -> Result<Self> {
        let status = client::policies(socket).context(
            "the policies of this node cannot be compared: --live and --probe are for nodes where \
             `causeway agent` runs",
        )?;
        let read =
            Nft::open().and_then(|mut nft| nft.read_table(NftFamily::Inet, names::NFT_POLICY));
        let table = read.context("the node's nftables")?;
        let pods = status.pods.iter().flat_map(|pod| pod.addresses.clone()).collect();
        Ok(Self { table, pods, socket: socket.to_owned() })
    }

    /// What the kernel makes of a connection, and with `probe` of a real packet of it.
    pub(super) fn look(&self, world: &World, one: &Explanation, probe: bool) -> Result<Found> {
        let (from, to) = (one.from.address, one.to.address);
        let here = (self.pods.contains(&from), self.pods.contains(&to));
        let mut found = Found {
            kernel: None,
            kernel_says: None,
            steps: Vec::new(),
            probe: None,
            differs: false,
        };
        // What the pods of this node have to say of it; the other end's node judges for itself.
        let expected =
            (!here.0 || one.judgement.egress.allowed) && (!here.1 || one.judgement.ingress.allowed);
        match (self.hook(world, one), &self.table) {
            (Err(why), _) => found.kernel_says = Some(why),
            (Ok(_), None) => {
                found.kernel = Some(true);
                found.kernel_says =
                    Some(format!("has no table inet {}: everything passes", names::NFT_POLICY));
                found.differs = !expected;
            }
            (Ok(hook), Some(table)) => {
                let (protocol, port) = numbers(one.transport, from);
                let packet = Packet {
                    client: from,
                    server: to,
                    protocol,
                    port,
                    client_port: CLIENT_PORT,
                    state: NEW,
                    reply: false,
                    syn: true,
                };
                let traced = trace::trace(table, hook, &packet)?;
                found.kernel = Some(!traced.dropped);
                found.steps = traced.steps;
                found.differs = traced.dropped == expected;
            }
        }
        if probe {
            self.probe(one, &mut found)?;
        }
        Ok(found)
    }

    /// The hook at which it passes this node; why at none.
    fn hook(&self, world: &World, one: &Explanation) -> Result<Hook, String> {
        let here = |address| self.pods.contains(&address);
        let node_of = |who: &Who| match who {
            Who::Pod(name) => world.pod(name).and_then(|pod| pod.node.clone()),
            Who::Node(name) => Some(name.clone()),
            Who::Outside => None,
        };
        if !here(one.from.address) && !here(one.to.address) {
            let of = |who: &Who| node_of(who).map(|node| format!(" (node {node})"));
            return Err(format!(
                "neither {}{} nor {}{} is a pod of this node: ask there",
                one.from,
                of(&one.from.who).unwrap_or_default(),
                one.to,
                of(&one.to.who).unwrap_or_default()
            ));
        }
        let same = node_of(&one.from.who).is_some_and(|node| node_of(&one.to.who) == Some(node));
        match (&one.from.who, &one.to.who) {
            (Who::Pod(_), Who::Node(_)) if same => Ok(Hook::Input),
            (Who::Node(_), _) if same => {
                Err("is not asked: what a node sends its own pods goes by no hook of ours".into())
            }
            _ => Ok(Hook::Forward),
        }
    }

    /// Sends a real packet, from a pod of this node.
    fn probe(&self, one: &Explanation, found: &mut Found) -> Result<()> {
        let (from, to) = (one.from.address, one.to.address);
        let ns = netns_of(from)?.ok_or_else(|| {
            anyhow!(
                "{} is no pod of this node: a packet can be sent on the node of who sends it",
                one.from
            )
        })?;
        let before = SystemTime::now();
        let reaches = |ask| causeway_lab::reaches(Path::new(&ns), None, to, ask, PATIENCE);
        let (reached, said) = match one.transport {
            Transport::Port(Protocol::Tcp, port) => tcp(&ns, SocketAddr::new(to, port))?,
            // Who listens may well say nothing.
            Transport::Port(Protocol::Udp, port) => match reaches(Ask::Udp(port))? {
                true => (Some(true), "it was reached: somebody answers, or nobody listens"),
                false => (None, SILENT),
            },
            Transport::Port(Protocol::Sctp, port) => match reaches(Ask::Sctp(port))? {
                true => (Some(true), "it was reached: somebody answers, or nobody listens"),
                false => (None, SILENT),
            },
            Transport::Other => match reaches(Ask::Echo)? {
                true => (Some(true), "it was answered"),
                false => (Some(false), SILENT),
            },
        };
        let allowed = one.judgement.allowed();
        let mut words = said.to_owned();
        if said == SILENT {
            match self.dropped(one, before)? {
                Some(line) => {
                    words += &format!("; {line}");
                    found.differs |= allowed;
                }
                None if self.pods.contains(&to) => {
                    words += "; this node's policies did not drop it";
                }
                None => {
                    words +=
                        "; this node did not drop it: ask `causeway policy drops` at the other end";
                }
            }
        }
        found.differs |= reached.is_some_and(|reached| reached != allowed);
        found.probe = Some(words);
        Ok(())
    }

    /// What the agent knows of a packet that was dropped just now.
    fn dropped(&self, one: &Explanation, since: SystemTime) -> Result<Option<String>> {
        std::thread::sleep(TOLD_AFTER);
        let since = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let since = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let named = match one.transport {
            Transport::Other => "icmp".to_owned(),
            port => port.to_string(),
        };
        let records = client::drops(&self.socket)?.records;
        let is = |record: &&causeway_agent::policy::DropRecord| {
            record.from.address == one.from.address
                && record.to.address == one.to.address
                && record.transport == named
                && record.last >= since
        };
        Ok(records.iter().find(is).map(|record| drops::line(record, record.seen)))
    }
}

impl Found {
    /// For a person, behind an explanation.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let kernel = match (self.kernel, &self.kernel_says) {
            (_, Some(says)) => says.clone(),
            (Some(true), None) => "lets it pass".to_owned(),
            _ => "drops it".to_owned(),
        };
        let _ = write!(text, "\n  kernel   {kernel}");
        for step in &self.steps {
            let _ = write!(text, "\n           {step}");
        }
        if let Some(probe) = &self.probe {
            let _ = write!(text, "\n  probe    {probe}");
        }
        if self.differs {
            text += "\n  differs  this is not what the policies say; `causeway policy show` tells \
                     whether all of them are in force yet";
        }
        text
    }
}

/// A protocol and port as packets have them.
fn numbers(transport: Transport, from: IpAddr) -> (u8, u16) {
    match transport {
        Transport::Port(protocol, port) => (protocol.number(), port),
        Transport::Other => (if from.is_ipv4() { 1 } else { 58 }, 0),
    }
}

/// Whether a connection gets there, where that can be told, and in words.
fn tcp(ns: &str, to: SocketAddr) -> Result<(Option<bool>, &'static str)> {
    let opened = NetNs::open(ns).with_context(|| ns.to_owned())?;
    let answer = opened.run(|| probe::tcp(to, PATIENCE))?.context("the probe")?;
    Ok(match answer {
        Answer::Open => (Some(true), "it was answered"),
        Answer::Closed => (Some(true), "it was reached: nobody listens at that port"),
        Answer::Rejected => (None, "a firewall says no: none of Causeway's rules does"),
        Answer::Unreachable => (None, "there is no way there"),
        Answer::Silent => (Some(false), SILENT),
    })
}

/// The network namespace of the pod that has an address, by its attachment.
fn netns_of(address: IpAddr) -> Result<Option<String>> {
    let dir = Path::new(names::ATTACHMENTS_DIR);
    let entries = match dir.read_dir() {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => bail!("{}: {error}", dir.display()),
    };
    for entry in entries {
        let path = entry?.path();
        // One may go while it is looked at.
        let Ok(bytes) = std::fs::read(&path) else { continue };
        let Ok(record) = serde_json::from_slice::<AttachmentRecord>(&bytes) else { continue };
        if record.leaving.is_none() && record.addresses.iter().any(|net| net.addr() == address) {
            return Ok(Some(record.netns));
        }
    }
    Ok(None)
}
