//! The agents of a lab's nodes: one real process each, kept running as a DaemonSet keeps it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use crate::clock;
use crate::enter::wrapper;
use crate::spec::{Dirs, Spec};

/// What is done with an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Started, if it does not run.
    Start,
    /// Ended in good order (SIGTERM), and not started again.
    Stop,
    /// Ended in good order, then started again.
    Restart,
    /// Ended at once (SIGKILL), then started again.
    Kill,
    /// Ended at once (SIGKILL), and not started again.
    Halt,
}

impl Action {
    /// Whether the agent is not started again afterwards.
    fn stays_down(self) -> bool {
        matches!(self, Action::Stop | Action::Halt)
    }

    /// Whether it gets no time for a good end.
    fn at_once(self) -> bool {
        matches!(self, Action::Kill | Action::Halt)
    }
}

/// What an agent is started as, from its next start on.
#[derive(Clone, Debug)]
struct Program {
    path: PathBuf,
    /// The file with the offset of a false wall clock.
    clock: Option<PathBuf>,
}

/// How an agent does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentState {
    /// Its process, while it runs.
    pub pid: Option<i32>,
    /// How often it was started.
    pub starts: u64,
    /// How it ended the last time.
    pub ended: Option<String>,
}

/// An order, and whom to tell that it is carried out.
type Order = (Action, oneshot::Sender<()>);

struct Handle {
    orders: tokio::sync::mpsc::UnboundedSender<Order>,
    state: watch::Receiver<AgentState>,
    program: Arc<Mutex<Program>>,
}

/// All agents of a lab.
pub(crate) struct Agents {
    spec: Spec,
    all: BTreeMap<String, Handle>,
}

/// An agent that ends by itself waits this long before its next start, doubled each time up to
/// [`LONGEST`]; one that ran for a while begins anew.
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(5);
/// How long a good end may take.
const GRACE: Duration = Duration::from_secs(5);

impl Agents {
    /// Starts the agents of all nodes that are to have one.
    pub(crate) fn start(causeway: &Path, spec: &Spec) -> Self {
        let all = spec.served().into_iter().map(|node| {
            let (orders, inbox) = tokio::sync::mpsc::unbounded_channel();
            let (tx, state) = watch::channel(AgentState::default());
            let program = Program { path: causeway.to_owned(), clock: None };
            let program = Arc::new(Mutex::new(program));
            let agent = Agent {
                causeway: causeway.to_owned(),
                lab: spec.name.clone(),
                node: node.clone(),
                state: tx,
                program: program.clone(),
            };
            tokio::spawn(agent.keep(inbox));
            (node, Handle { orders, state, program })
        });
        Self { spec: spec.clone(), all: all.collect() }
    }

    /// Carries out an action on one node's agent and waits until it is done.
    pub(crate) async fn act(&self, node: &str, action: Action) -> Result<AgentState> {
        let handle = self.find(node)?;
        let (tx, done) = oneshot::channel();
        handle.orders.send((action, tx)).map_err(|_| anyhow!("the lab is ending"))?;
        done.await.map_err(|_| anyhow!("the lab is ending"))?;
        Ok(handle.state.borrow().clone())
    }

    fn find(&self, node: &str) -> Result<&Handle> {
        self.spec.check_node(node)?;
        self.all.get(node).with_context(|| format!("{node} has no agent"))
    }

    /// Ends one node's agent in good order and starts another program in its place, as an upgrade
    /// does.
    pub(crate) async fn upgrade(&self, node: &str, path: &Path) -> Result<AgentState> {
        if !path.is_file() {
            bail!("{} is no file; name the new program", path.display());
        }
        locked(&self.find(node)?.program).path = path.to_owned();
        self.act(node, Action::Restart).await
    }

    /// Lets the wall clock that one node's agent sees jump. The first time, the agent is started
    /// again, with a clock that can jump.
    pub(crate) async fn set_clock(&self, node: &str, node_dir: &Path, seconds: i64) -> Result<()> {
        let handle = self.find(node)?;
        let file = clock::file(node_dir);
        if locked(&handle.program).clock.is_none() {
            clock::environment(&file)?;
            clock::set(&file, 0)?;
            locked(&handle.program).clock = Some(file.clone());
            let before = handle.state.borrow().starts;
            self.act(node, Action::Restart).await?;
            let mut state = handle.state.clone();
            let there = state.wait_for(|s| s.starts > before && s.pid.is_some());
            let pid = there.await.context("the lab is ending")?.pid;
            if let Err(error) = clock::holds(pid.unwrap_or(0)).await {
                locked(&handle.program).clock = None;
                return Err(error);
            }
        }
        clock::set(&file, seconds)
    }

    /// The nodes whose agents see a clock that can jump.
    pub(crate) fn clocks(&self) -> BTreeMap<String, PathBuf> {
        let of = |h: &Handle| locked(&h.program).clock.clone();
        self.all.iter().filter_map(|(n, h)| Some((n.clone(), of(h)?))).collect()
    }

    /// How they all do.
    pub(crate) fn states(&self) -> BTreeMap<String, AgentState> {
        self.all.iter().map(|(n, h)| (n.clone(), h.state.borrow().clone())).collect()
    }
}

fn locked(program: &Mutex<Program>) -> MutexGuard<'_, Program> {
    program.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Agent {
    causeway: PathBuf,
    lab: String,
    node: String,
    state: watch::Sender<AgentState>,
    program: Arc<Mutex<Program>>,
}

/// Why an agent's process ended.
enum End {
    /// By itself.
    Itself,
    /// As asked; the order is answered when the next state is reached.
    Asked(Order),
}

impl Agent {
    async fn keep(self, mut orders: tokio::sync::mpsc::UnboundedReceiver<Order>) {
        let mut pause = FIRST;
        loop {
            let began = std::time::Instant::now();
            let end = match self.spawn() {
                Ok(child) => self.run(child, &mut orders).await,
                Err(error) => {
                    tracing::error!("{}: the agent cannot be started: {error:#}", self.node);
                    self.state.send_modify(|s| s.ended = Some(format!("{error:#}")));
                    Some(End::Itself)
                }
            };
            match end {
                None => return,
                Some(End::Itself) => {
                    if began.elapsed() > LONGEST {
                        pause = FIRST;
                    }
                    tracing::warn!("{}: the agent ended; it starts again in {pause:?}", self.node);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST);
                }
                Some(End::Asked((action, done))) if action.stays_down() => {
                    let _ = done.send(());
                    if self.wait_for_start(&mut orders).await.is_none() {
                        return;
                    }
                }
                // The order is answered before the next process is there: whoever gave it asks
                // for the agent's status next, and waits for that.
                Some(End::Asked((_, done))) => drop(done.send(())),
            }
        }
    }

    async fn wait_for_start(
        &self,
        orders: &mut tokio::sync::mpsc::UnboundedReceiver<Order>,
    ) -> Option<()> {
        loop {
            let (action, done) = orders.recv().await?;
            let _ = done.send(());
            if !action.stays_down() {
                return Some(());
            }
        }
    }

    fn spawn(&self) -> Result<tokio::process::Child> {
        let dirs = Dirs::of(&self.lab);
        let path = dirs.node(&self.node).join("agent.log");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| path.display().to_string())?;
        let program = locked(&self.program).clone();
        let mut command = wrapper(&self.causeway, &self.lab, &self.node);
        command.arg(&program.path).args(["agent", "--node-name", &self.node]);
        if let Some(file) = &program.clock {
            command.envs(clock::environment(file)?);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = tokio::process::Command::from(command).spawn()?;
        self.state.send_modify(|s| {
            s.pid = child.id().and_then(|id| i32::try_from(id).ok());
            s.starts += 1;
        });
        Ok(child)
    }

    /// Waits for the end of the process; `None` when the lab ends.
    async fn run(
        &self,
        mut child: tokio::process::Child,
        orders: &mut tokio::sync::mpsc::UnboundedReceiver<Order>,
    ) -> Option<End> {
        let end = loop {
            let order = tokio::select! {
                _ = child.wait() => break End::Itself,
                order = orders.recv() => order?,
            };
            if order.0 == Action::Start {
                let _ = order.1.send(());
                continue;
            }
            if !order.0.at_once() {
                send(&child, Signal::TERM);
                if tokio::time::timeout(GRACE, child.wait()).await.is_ok() {
                    break End::Asked(order);
                }
                tracing::warn!("{}: the agent does not end; it is killed", self.node);
            }
            send(&child, Signal::KILL);
            break End::Asked(order);
        };
        let how = child.wait().await.map_or_else(|e| e.to_string(), |s| s.to_string());
        self.state.send_modify(|s| {
            s.pid = None;
            s.ended = Some(how);
        });
        Some(end)
    }
}

/// Signals a child that has not been waited for, so that its number is still its own.
fn send(child: &tokio::process::Child, signal: Signal) {
    let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    if let Some(pid) = pid {
        let _ = kill_process(pid, signal);
    }
}
