//! The facts of this node. What cannot be read is a fact as well.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use causeway_agent::client;
use causeway_agent::config::Settings;
use causeway_agent::status::{State, Status};
use causeway_doctor::Facts;
use causeway_doctor::facts::{Agent, Clock, Unread};
use causeway_types::names;

use super::{cluster, cni, managers, network};

/// Takes what is there, or notes why it is not known.
pub(super) fn known<T: Default>(
    facts: &mut Facts,
    what: &str,
    found: Result<T, impl Display>,
) -> T {
    found.unwrap_or_else(|error| {
        facts.unread.push(Unread { what: what.to_owned(), why: error.to_string() });
        T::default()
    })
}

/// Who is asked beside this node.
#[derive(Debug)]
pub(super) enum Ask {
    /// Nobody.
    Nobody,
    /// The API and other nodes, as the agent would.
    AsAgent,
    /// The same, by another kubeconfig.
    By(PathBuf),
}

/// Everything that is known of this node.
pub(super) fn facts(cni_path: &[PathBuf], ask: &Ask) -> Facts {
    let mut facts = Facts::default();
    cni::look(&mut facts, cni_path);
    network::look(&mut facts);
    facts.node.served |= is_served();
    let status = facts.node.served.then(|| client::status(Path::new(names::AGENT_SOCKET)));
    facts.agent = status.as_ref().map(agent).unwrap_or_default();
    // A configuration that cannot be read keeps the agent from starting, which is told.
    let settings = Settings::load(Path::new(names::CONFIG_FILE)).unwrap_or_default();
    facts.node.attach = match &facts.node.file {
        Some(file) => file.attach,
        None => settings.config.attach,
    };
    facts.managers = managers::look();
    facts.clock = clock();
    let kubeconfig = match ask {
        Ask::By(file) => Some(file.as_path()),
        Ask::AsAgent | Ask::Nobody => None,
    };
    if facts.node.served && !matches!(ask, Ask::Nobody) {
        let status = status.and_then(Result::ok);
        cluster::look(&mut facts, &settings, kubeconfig, status.as_ref());
    }
    facts
}

/// Whether anything tells of an agent.
fn is_served() -> bool {
    [names::NODE_FILE, names::OWNED_FILE, names::AGENT_SOCKET, names::CONFIG_FILE]
        .iter()
        .any(|path| Path::new(path).exists())
}

fn agent(status: &anyhow::Result<Status>) -> Agent {
    match status {
        Ok(status) => Agent { silent: None, reports: reports(status) },
        Err(error) => Agent { silent: Some(format!("{error:#}")), reports: Vec::new() },
    }
}

fn reports(status: &Status) -> Vec<(String, String)> {
    let problems = status.problems.iter().map(|p| (p.owner.clone(), p.message.clone()));
    let bad = status.objects.iter().filter(|o| matches!(o.state, State::Failed | State::Conflict));
    let objects = bad.map(|o| {
        let why = o.error.as_deref().unwrap_or_default();
        (o.key.clone(), format!("{}: {why}", o.state.word()))
    });
    let feeds = [("nodes", &status.inputs.nodes), ("pods", &status.inputs.pods)];
    let feeds = feeds.into_iter().filter_map(|(name, feed)| {
        let error = feed.error.as_ref()?;
        Some((format!("the watch of {name}"), format!("the API does not serve it: {error}")))
    });
    problems.chain(objects).chain(feeds).collect()
}

fn clock() -> Clock {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let list = Path::new(names::CNI_CONF_DIR).join(names::CNI_CONFLIST);
    let files = [names::NODE_FILE, names::OWNED_FILE, names::LAST_VIEW, names::ATTACHMENTS_DIR]
        .map(PathBuf::from);
    let times = files.into_iter().chain([list]).filter_map(|path| {
        let time = path.metadata().and_then(|meta| meta.modified()).ok()?;
        Some((path.display().to_string(), seconds(time)))
    });
    Clock { now: seconds(SystemTime::now()), youngest: times.max_by_key(|(_, time)| *time) }
}
