//! What of the configuration counts as soon as it is changed: all that desired state depends on and that
//! can change under running pods, and how much is logged. A file that makes no sense, or is gone, changes
//! nothing. What the agent is built around counts when it starts again; which keys wait for that is told.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use causeway_desired::input::Config;

use crate::config::Settings;
use crate::log;

/// A file counts when it has been as it is for so long: one that is not renamed into its place is empty,
/// or half of what it is going to be, for a moment.
const SETTLES: Duration = Duration::from_millis(300);

/// Inode, size and time of change, in whole and billionths of seconds.
type Stamp = (u64, u64, i64, i64);

/// The configuration file as it was last read.
#[derive(Debug)]
pub(super) struct Live {
    path: PathBuf,
    stamp: Option<Stamp>,
    /// A file that may not be whole yet, and since when it has been as it is.
    fresh: Option<(Option<Stamp>, Instant)>,
    /// What the agent started with.
    started: Settings,
    /// Why the file as it is now cannot be used, or what of it waits for the agent's next start.
    pub(super) problem: Option<String>,
}

impl Live {
    /// The file that the agent has started with.
    pub(super) fn new(path: &Path) -> Self {
        let started = Settings::load(path).unwrap_or_default();
        Self { path: path.to_owned(), stamp: stamp(path), fresh: None, started, problem: None }
    }

    /// When to look again at a file that has just changed.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.fresh.as_ref().map(|(_, since)| *since + SETTLES)
    }

    /// Takes over what a changed file says. True when that is something else than before.
    pub(super) fn refresh(&mut self, config: &mut Config, now: Instant) -> bool {
        let found = stamp(&self.path);
        if found == self.stamp {
            self.fresh = None;
            return false;
        }
        match self.fresh {
            Some((stamp, since)) if stamp == found => {
                if now < since + SETTLES {
                    return false;
                }
            }
            _ => {
                self.fresh = Some((found, now));
                return false;
            }
        }
        self.fresh = None;
        self.stamp = found;
        let new = if found.is_some() {
            Settings::load(&self.path).map_err(|e| e.to_string())
        } else {
            Err(format!("{}: is gone", self.path.display()))
        };
        let new = match new {
            Ok(settings) => settings,
            Err(error) => {
                tracing::warn!("{error}");
                self.problem = Some(format!("{error}; the former configuration counts"));
                return false;
            }
        };
        self.problem = waits(&self.started, &new).map(|keys| {
            format!("{}: {keys} counts when the agent starts again", self.path.display())
        });
        log::change(new.log_level.as_deref());
        let live = live(config, new.config);
        let changed = live != *config;
        if changed {
            tracing::info!(path = %self.path.display(), "changed configuration taken over");
        }
        *config = live;
        changed
    }
}

/// The new configuration with the old values of what running pods and the agent are built around.
fn live(old: &Config, new: Config) -> Config {
    Config {
        attach: old.attach,
        plugin: old.plugin,
        network: old.network.clone(),
        bridge: old.bridge.clone(),
        route_protocol: old.route_protocol,
        ..new
    }
}

/// The changed keys that count only at a start.
fn waits(old: &Settings, new: &Settings) -> Option<String> {
    let (c, d) = (&old.config, &new.config);
    let keys = [
        ("attach", c.attach != d.attach),
        ("plugin", c.plugin != d.plugin),
        ("network", c.network != d.network),
        ("bridge", c.bridge != d.bridge),
        ("routeProtocol", c.route_protocol != d.route_protocol),
        ("metricsAddress", old.metrics_address != new.metrics_address),
        ("healthAddress", old.health_address != new.health_address),
        ("kubeconfig", old.kubeconfig != new.kubeconfig),
        ("k8sServiceHost", old.k8s_service_host != new.k8s_service_host),
        ("k8sServicePort", old.k8s_service_port != new.k8s_service_port),
        ("nodeName", old.node_name != new.node_name),
    ];
    let changed: Vec<&str> =
        keys.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key).collect();
    (!changed.is_empty()).then(|| changed.join(", "))
}

/// Of the file that a link leads to: a ConfigMap is changed by another link.
fn stamp(path: &Path) -> Option<Stamp> {
    let m = std::fs::metadata(path).ok()?;
    Some((m.ino(), m.len(), m.mtime(), m.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use causeway_desired::input::Road;

    /// What two looks make of the file, the second when it has settled.
    fn settled(live: &mut Live, config: &mut Config, clock: &mut Instant) -> bool {
        assert!(!live.refresh(config, *clock), "it may not be whole yet");
        assert!(live.next_wake().is_none_or(|at| at == *clock + SETTLES));
        *clock += SETTLES;
        live.refresh(config, *clock)
    }

    #[test]
    fn a_changed_file_counts_when_it_is_whole_and_one_without_sense_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        let put = |text: &str| std::fs::write(&path, text).unwrap();
        let mut clock = Instant::now();
        let mut config = Config::default();
        let mut live = Live::new(&path);
        assert!(!settled(&mut live, &mut config, &mut clock));
        put("road: vxlan\nreserved: [10.244.1.0/28]\nvxlanPort: 4789\n");
        assert!(settled(&mut live, &mut config, &mut clock));
        assert!(!live.refresh(&mut config, clock), "nothing changed");
        assert_eq!(config.reserved, ["10.244.1.0/28".parse().unwrap()]);
        assert_eq!((config.road, config.vxlan_port), (Road::Vxlan, 4789));
        put("reserved: [10.244.1.1/28]\ncoolDown: 60\n");
        assert!(!settled(&mut live, &mut config, &mut clock));
        assert!(live.problem.as_ref().unwrap().contains("did you mean 10.244.1.0/28"));
        assert_eq!((config.reserved.len(), config.cool_down), (1, 0));
        put("coolDown: 60\n");
        assert!(settled(&mut live, &mut config, &mut clock));
        assert_eq!((config.reserved.len(), config.cool_down), (0, 60));
        assert_eq!((live.problem.as_ref(), config.road), (None, Road::Auto));
    }

    #[test]
    fn half_a_file_and_one_that_is_gone_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, "mtu: 1400\n").unwrap();
        let mut clock = Instant::now();
        let mut config = Settings::load(&path).unwrap().config;
        let before = config.clone();
        let mut live = Live::new(&path);
        // As an editor writes: empty first.
        std::fs::write(&path, "").unwrap();
        assert!(!live.refresh(&mut config, clock));
        clock += SETTLES;
        std::fs::write(&path, "mtu: 1400\n# a comment\n").unwrap();
        assert!(!settled(&mut live, &mut config, &mut clock));
        std::fs::remove_file(&path).unwrap();
        assert!(!settled(&mut live, &mut config, &mut clock));
        assert!(live.problem.as_ref().unwrap().contains("is gone"), "{:?}", live.problem);
        assert_eq!(config, before);
    }

    #[test]
    fn what_the_agent_is_built_around_waits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, "").unwrap();
        let (mut config, mut clock) = (Config::default(), Instant::now());
        let mut live = Live::new(&path);
        std::fs::write(
            &path,
            "attach: bridge\nplugin: bridge\nnetwork: n\nbridge: br0\n\
            routeProtocol: 204\nmetricsAddress: 0.0.0.0:9471\nhealthAddress: 127.0.0.1:1\n\
            kubeconfig: /k\nk8sServiceHost: h\nk8sServicePort: 1\nnodeName: n\n",
        )
        .unwrap();
        assert!(!settled(&mut live, &mut config, &mut clock));
        assert_eq!(config, Config::default());
        let problem = live.problem.clone().unwrap();
        let all = "attach, plugin, network, bridge, routeProtocol, metricsAddress, healthAddress, \
                   kubeconfig, k8sServiceHost, k8sServicePort, nodeName counts when";
        assert!(problem.contains(all), "{problem}");
        std::fs::write(&path, "# nothing\n").unwrap();
        assert!(!settled(&mut live, &mut config, &mut clock));
        assert_eq!(live.problem, None);
    }
}
