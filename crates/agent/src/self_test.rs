//! The node's test of itself: before anybody is told that the node is ready, a throw-away pod is made
//! by the same code as any pod, and the node talks to it.
//!
//! It is done once a boot, while there is no node file: an agent that starts again under running pods
//! changes nothing about what they are told. Should the agent end in the middle, the next one removes
//! what is left.

use std::fmt;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use causeway_cni_spec::CniError;
use causeway_desired::conflist;
use causeway_desired::input::Config;
use causeway_kernel::NetNs;
use causeway_plugins::Paths;
use causeway_types::state::NodeFile;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use serde_json::Value;

use crate::files;
use crate::retry::Failure;

/// The container's ID. Runtimes take hexadecimal digits, so that none of theirs is the same.
pub(crate) const CONTAINER: &str = "causeway-self-test";
const IFNAME: &str = "eth0";
/// The node file as it is going to be, for the plugins that make the test's pod.
const CANDIDATE: &str = "self-test.json";
/// A connection over one veth pair takes microseconds; a machine with much to do takes its time.
const PATIENCE: Duration = Duration::from_secs(2);

/// How far the test is.
#[derive(Debug, Default)]
pub(crate) struct SelfTest {
    state: State,
    failure: Option<Failure>,
    warnings: Vec<String>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    /// To be done as soon as the node's part of the network is there.
    #[default]
    Untried,
    /// Wanted by the loop.
    Asked(Box<NodeFile>),
    /// A thread is at work.
    UnderWay,
    /// Nothing stands in the way of pods.
    Passed,
}

/// What a test found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// The node reaches its pods.
    Passed,
    /// It does not, or no pod can be made.
    Failed(String),
    /// It does, but something else is not as it should be.
    Warning(String),
}

impl SelfTest {
    /// Nothing to be done: pods have been told that the node is ready.
    pub(crate) fn passed() -> Self {
        Self { state: State::Passed, ..Self::default() }
    }

    /// Whether the node may be called ready with this node file. Asks for the test where it is due.
    pub(crate) fn allows(&mut self, file: &NodeFile, now: Instant) -> bool {
        let due = self.failure.as_ref().is_none_or(|failure| failure.next <= now);
        if matches!(self.state, State::Untried | State::Asked(_)) && due {
            self.state = State::Asked(Box::new(file.clone()));
        }
        self.state == State::Passed
    }

    /// The node file to test with, if the loop has asked for a test.
    pub(crate) fn take_request(&mut self) -> Option<NodeFile> {
        match std::mem::replace(&mut self.state, State::UnderWay) {
            State::Asked(file) => Some(*file),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// Takes in what a test found.
    pub(crate) fn found(&mut self, finding: Finding, now: Instant) {
        match finding {
            Finding::Passed => {
                self.state = State::Passed;
                self.failure = None;
            }
            Finding::Failed(why) => {
                tracing::warn!("self-test: {why}");
                self.state = State::Untried;
                match &mut self.failure {
                    Some(failure) => failure.again(why, now),
                    None => self.failure = Some(Failure::first(why, now)),
                }
            }
            Finding::Warning(what) => {
                tracing::warn!("self-test: {what}");
                self.warnings.push(what);
            }
        }
    }

    /// What is wrong, for people.
    pub(crate) fn problems(&self) -> impl Iterator<Item = String> + '_ {
        let failure = self.failure.iter().map(|failure| &failure.error);
        failure.chain(&self.warnings).map(|what| format!("self-test: {what}"))
    }

    /// When the next one is due.
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        let failure = self.failure.as_ref().filter(|_| self.state == State::Untried)?;
        Some(failure.next)
    }
}

/// One test.
#[derive(Debug)]
pub(crate) struct Trial {
    paths: Paths,
    /// The network's configuration list.
    list: Value,
    /// Addresses of the node that its pods have to reach.
    addresses: Vec<IpAddr>,
}

impl Trial {
    /// A test of a node that is about to be described by this file.
    pub(crate) fn new(
        paths: Paths,
        config: &Config,
        file: &NodeFile,
        addresses: Vec<IpAddr>,
    ) -> Self {
        let list = conflist::render(config, file);
        Self { paths, list, addresses }
    }

    /// Makes a pod, talks to it, removes it. Runs in the node's namespace; what it finds it says as it
    /// finds it: others wait for the first of it.
    pub(crate) fn run(&self, say: impl Fn(Finding)) {
        let pod = match Pod::make(self) {
            Ok(pod) => pod,
            Err(why) => return say(Finding::Failed(why)),
        };
        for address in &pod.addresses {
            if let Err(error) = pod.answers(*address) {
                return say(Finding::Failed(format!(
                    "this node does not reach its own pods: a connection to a pod made for the test, \
                     {address}, failed: {error}; `causeway doctor` on the node looks for the cause"
                )));
            }
        }
        say(Finding::Passed);
        for address in &self.addresses {
            if let Err(error) = pod.reaches(*address) {
                say(Finding::Warning(format!(
                    "pods do not reach this node at {address}: a connection from a pod made for the \
                     test failed: {error}. Services on the node's network are out of their reach; a \
                     firewall of the node drops what comes from pods, or its routes to them differ: \
                     `causeway doctor` on the node looks for the cause"
                )));
            }
        }
    }

    /// Removes what a test that came to no end may have left.
    ///
    /// # Errors
    /// What DEL says.
    pub(crate) fn clean_up(&self) -> Result<(), CniError> {
        self.call("DEL", None).map(|_| ())
    }

    fn call(&self, command: &str, netns: Option<&str>) -> Result<String, CniError> {
        let mut conf = self.list["plugins"][0].clone();
        for key in ["cniVersion", "name"] {
            conf[key] = self.list[key].clone();
        }
        let env = |name: &str| match name {
            "CNI_COMMAND" => Some(command.to_owned()),
            "CNI_CONTAINERID" => Some(CONTAINER.to_owned()),
            "CNI_IFNAME" => Some(IFNAME.to_owned()),
            "CNI_NETNS" => netns.map(str::to_owned),
            // No other program is called.
            "CNI_PATH" => Some("/".to_owned()),
            _ => None,
        };
        let program = conf["type"].as_str().unwrap_or_default();
        causeway_plugins::call(program, env, conf.to_string().as_bytes(), self.paths.clone())
    }
}

/// A pod that is there as long as this.
struct Pod<'a> {
    trial: &'a Trial,
    netns: NetNs,
    addresses: Vec<IpAddr>,
}

impl<'a> Pod<'a> {
    fn make(trial: &'a Trial) -> Result<Self, String> {
        let fail = |what: &'static str| move |e: &dyn fmt::Display| format!("{what}: {e}");
        trial.clean_up().map_err(|e| fail("what an earlier test left cannot be removed")(&e))?;
        let netns =
            NetNs::unnamed().map_err(|e| fail("no network namespace for a pod can be had")(&e))?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd());
        let mut pod = Self { trial, netns, addresses: Vec::new() };
        let result = trial.call("ADD", Some(&path));
        let result = result.map_err(|e| fail("no pod can be attached")(&e))?;
        pod.addresses = addresses(&result).map_err(|e| fail("the result of an ADD")(&e))?;
        Ok(pod)
    }

    /// A connection from the node, and a word each way.
    fn answers(&self, address: IpAddr) -> std::io::Result<()> {
        let listener = self.inside(|| TcpListener::bind((address, 0)))?;
        exchange(&listener, |at| TcpStream::connect_timeout(&at, PATIENCE))
    }

    /// A connection from the pod to an address of the node, and a word each way.
    fn reaches(&self, address: IpAddr) -> std::io::Result<()> {
        let listener = TcpListener::bind((address, 0))?;
        exchange(&listener, |at| self.inside(|| TcpStream::connect_timeout(&at, PATIENCE)))
    }

    fn inside<T: Send>(&self, f: impl FnOnce() -> std::io::Result<T> + Send) -> std::io::Result<T> {
        self.netns.run(f).map_err(std::io::Error::other)?
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        // The attempt after this one, or the next agent, removes it.
        if let Err(error) = self.trial.clean_up() {
            tracing::warn!("self-test: the pod made for it cannot be removed: {error}");
        }
    }
}

/// Connects to a listener and sends a byte each way.
fn exchange(
    listener: &TcpListener,
    connect: impl FnOnce(SocketAddr) -> std::io::Result<TcpStream>,
) -> std::io::Result<()> {
    let mut near = connect(listener.local_addr()?)?;
    set_socket_timeout(listener, Timeout::Recv, Some(PATIENCE))?;
    let (mut far, _) = listener.accept()?;
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(PATIENCE))?;
    }
    let mut byte = [0];
    near.write_all(b"?")?;
    far.read_exact(&mut byte)?;
    far.write_all(b"!")?;
    near.read_exact(&mut byte)
}

fn addresses(result: &str) -> Result<Vec<IpAddr>, String> {
    let result: Value = serde_json::from_str(result).map_err(|e| e.to_string())?;
    let ips = result["ips"].as_array().ok_or("it has no \"ips\"")?;
    let address = |ip: &Value| {
        let text = ip["address"].as_str().ok_or("an address is missing")?;
        let net: ipnet::IpNet = text.parse().map_err(|_| format!("{text:?} is no address"))?;
        Ok(net.addr())
    };
    ips.iter().map(address).collect()
}

/// The paths of plugins that find this node file; it is gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Candidate(Paths);

impl Candidate {
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write(paths: &Paths, file: &NodeFile) -> Result<Self, String> {
        let node_file = paths.node_file.with_file_name(CANDIDATE);
        let text = serde_json::to_vec_pretty(file).map_err(|e| e.to_string())?;
        files::replace_if_changed(&node_file, &text, 0o644).map_err(|e| e.to_string())?;
        Ok(Self(Paths { node_file, ..paths.clone() }))
    }

    pub(crate) fn paths(&self) -> &Paths {
        &self.0
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0.node_file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn file(generation: u64) -> NodeFile {
        let file = json!({"generation": generation, "node": "n1", "podCidrs": ["10.244.1.0/24"],
            "mtu": 1450, "attach": "routed", "bridge": "cni0", "noMasquerade": [], "served": []});
        serde_json::from_value(file).unwrap()
    }

    #[test]
    fn it_is_asked_for_once_and_then_again_after_a_pause() {
        let (mut test, now) = (SelfTest::default(), Instant::now());
        assert_eq!(test.take_request(), None, "nobody asked");
        assert!(!test.allows(&file(1), now));
        assert!(!test.allows(&file(2), now));
        assert_eq!(test.take_request(), Some(file(2)), "with the newest file");
        assert!(!test.allows(&file(2), now));
        assert_eq!(test.take_request(), None, "it is under way");
        assert_eq!(test.next_wake(), None);

        test.found(Finding::Failed("no route".into()), now);
        assert_eq!(test.problems().collect::<Vec<_>>(), ["self-test: no route"]);
        let again = test.next_wake().unwrap();
        assert!(again > now);
        assert!(!test.allows(&file(2), now));
        assert_eq!(test.take_request(), None, "too early");
        assert!(!test.allows(&file(2), again));
        assert_eq!(test.take_request(), Some(file(2)));

        test.found(Finding::Passed, again);
        assert!(test.allows(&file(3), again));
        assert_eq!((test.take_request(), test.next_wake()), (None, None));
        assert_eq!(test.problems().count(), 0);
        test.found(Finding::Warning("slow".into()), again);
        assert!(test.allows(&file(3), again));
        assert_eq!(test.problems().collect::<Vec<_>>(), ["self-test: slow"]);
    }

    #[test]
    fn addresses_of_a_result() {
        let result = json!({"ips": [{"address": "10.244.1.2/32"}, {"address": "fd00::2/128"}]});
        let found = addresses(&result.to_string()).unwrap();
        assert_eq!(found, ["10.244.1.2", "fd00::2"].map(|a| a.parse::<IpAddr>().unwrap()));
        assert!(addresses("{}").is_err());
        assert!(
            addresses(r#"{"ips": [{"address": "10.244.1.2"}]}"#).unwrap_err().contains("10.244")
        );
    }
}
