//! The files that tell others that the node is ready, and the last good view.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use causeway_desired::input::ClusterView;
use causeway_types::Cidr;
use causeway_types::state::NodeFile;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::files;
use crate::options::Paths;

/// The node file and, after it, the CNI configuration list.
#[derive(Debug)]
pub(crate) struct ReadyFiles {
    node_file: PathBuf,
    conflist: PathBuf,
    last: Option<NodeFile>,
}

impl ReadyFiles {
    /// Takes over the generation of the file that a former agent left.
    pub(crate) fn new(paths: &Paths) -> Self {
        let last = std::fs::read(&paths.node_file)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<NodeFile>(&bytes).ok());
        Self { node_file: paths.node_file.clone(), conflist: paths.conflist(), last }
    }

    /// Writes both where they differ from what is there, the node file first: the runtime calls
    /// the plugins as soon as it sees the list, and they read the node file.
    ///
    /// # Errors
    /// When a file cannot be written; the text names it.
    pub(crate) fn write(
        &mut self,
        mut file: NodeFile,
        render: impl FnOnce(&NodeFile) -> serde_json::Value,
    ) -> Result<(), String> {
        file.generation = match &self.last {
            Some(last) if (NodeFile { generation: last.generation, ..file.clone() }) == *last => {
                last.generation
            }
            Some(last) => last.generation + 1,
            None => 1,
        };
        let json = |v: serde_json::Result<Vec<u8>>| v.map_err(|e| e.to_string());
        let text = json(serde_json::to_vec_pretty(&file))?;
        let write = |path, text: &[u8]| {
            files::replace_if_changed(path, text, 0o644).map_err(|e| e.to_string())
        };
        if write(&self.node_file, &text)? {
            tracing::info!(generation = file.generation, "node file written");
        }
        // Plugins go by it from now on, whatever becomes of the list.
        self.last = Some(file.clone());
        let mut list = json(serde_json::to_vec_pretty(&render(&file)))?;
        list.push(b'\n');
        if write(&self.conflist, &list)? {
            tracing::info!(path = %self.conflist.display(), "CNI configuration list written");
        }
        Ok(())
    }

    /// The file last written, by this agent or one before it in this boot.
    pub(crate) fn written(&self) -> Option<&NodeFile> {
        self.last.as_ref()
    }

    /// The extra ranges that plugins give addresses out of, by the file last written.
    pub(crate) fn offered(&self) -> &[Cidr] {
        self.last.as_ref().map_or(&[], |file| &file.extra_cidrs)
    }

    /// The generation last written; 0 before the first.
    pub(crate) fn generation(&self) -> u64 {
        self.last.as_ref().map_or(0, |f| f.generation)
    }
}

/// The last good view on disk, for a boot while the API is away.
#[derive(Debug)]
pub(crate) struct LastView {
    path: PathBuf,
    written: Option<ClusterView>,
    not_before: Instant,
}

impl LastView {
    /// At most one writing in this time: in a large cluster some node changes all the time.
    const PAUSE: Duration = Duration::from_secs(10);

    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, written: None, not_before: Instant::now() }
    }

    /// The view that was last written, if it can be read, without what of it cannot be understood.
    pub(crate) fn load(&self) -> Result<Option<ClusterView>, String> {
        let unread = |e| format!("{}: {e}; it is not used", self.path.display());
        match std::fs::read(&self.path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(view) => Ok(Some(view)),
                Err(_) => {
                    serde_json::from_slice(&bytes).map(|all| Some(understood(all))).map_err(unread)
                }
            },
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(format!("{}: {e}", self.path.display())),
        }
    }

    /// Writes the view down if it changed and the last writing is long enough ago; otherwise says
    /// when to come again.
    pub(crate) fn keep(&mut self, view: &ClusterView, now: Instant) -> Option<Instant> {
        if self.written.as_ref() == Some(view) {
            return None;
        }
        if now < self.not_before {
            return Some(self.not_before);
        }
        self.not_before = now + Self::PAUSE;
        let text = serde_json::to_vec(view).unwrap_or_default();
        match files::replace_if_changed(&self.path, &text, 0o600) {
            Ok(_) => {
                self.written = Some(view.clone());
                None
            }
            Err(error) => {
                tracing::warn!(%error, "cannot keep the last good view");
                Some(self.not_before)
            }
        }
    }
}

/// What another version wrote and this one does not understand costs the node or pod that it is of.
fn understood(all: Value) -> ClusterView {
    fn entries<K: Ord + DeserializeOwned, V: DeserializeOwned>(all: &Value) -> BTreeMap<K, V> {
        let entry = |(name, value): (&String, &Value)| {
            let key = serde_json::from_value(name.as_str().into()).ok()?;
            let value = V::deserialize(value).inspect_err(|error| {
                tracing::warn!("the last good view: {name}: {error}; it is left out");
            });
            Some((key, value.ok()?))
        };
        all.as_object().into_iter().flatten().filter_map(entry).collect()
    }
    let namespaces =
        all.get("policyNamespaces").and_then(|list| serde_json::from_value(list.clone()).ok());
    ClusterView {
        nodes: entries(&all["nodes"]),
        pods: entries(&all["pods"]),
        policy_namespaces: namespaces.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use causeway_types::state::Attach;
    use serde_json::json;

    fn file(mtu: u32) -> NodeFile {
        NodeFile {
            generation: 0,
            node: "n1".parse().unwrap(),
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            extra_cidrs: Vec::new(),
            reserved: Vec::new(),
            cool_down: 0,
            mtu: causeway_types::Mtu::new(mtu).unwrap(),
            attach: Attach::Routed,
            bridge: "cni0".parse().unwrap(),
            no_masquerade: Vec::new(),
            served: Vec::new(),
            policy_namespaces: Vec::new(),
        }
    }

    #[test]
    fn the_generation_grows_with_the_content_alone() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::below(dir.path());
        let mut files = ReadyFiles::new(&paths);
        let render = |f: &NodeFile| json!({"generation": f.generation});
        files.write(file(1450), render).unwrap();
        files.write(file(1450), render).unwrap();
        assert_eq!(files.generation(), 1);
        let mut files = ReadyFiles::new(&paths);
        files.write(file(1450), render).unwrap();
        assert_eq!(files.generation(), 1, "a restart changes nothing");
        files.write(file(1400), render).unwrap();
        assert_eq!(files.generation(), 2);
        let text = std::fs::read_to_string(paths.conflist()).unwrap();
        assert!(text.contains('2') && text.ends_with('\n'), "{text}");
        std::fs::remove_file(paths.conflist()).unwrap();
        files.write(file(1400), render).unwrap();
        assert!(paths.conflist().exists(), "put back");
    }

    #[test]
    fn the_last_view_is_kept_now_and_then() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("last-view.json");
        let mut last = LastView::new(path.clone());
        assert_eq!(last.load(), Ok(None));
        let now = Instant::now();
        let mut view = ClusterView::default();
        assert_eq!(last.keep(&view, now), None);
        assert_eq!(last.load(), Ok(Some(view.clone())));
        view.nodes.insert("n2".parse().unwrap(), <_>::default());
        let again = last.keep(&view, now).expect("too early");
        assert_eq!(last.keep(&view, again), None);
        assert_eq!(last.load(), Ok(Some(view)));
        std::fs::write(&path, "{").unwrap();
        assert!(last.load().unwrap_err().contains("last-view.json"));
        // Of another version: one node that is not understood.
        let node = |address: Value| json!({"addresses": [address], "podCidrs": [], "zone": "a"});
        let view = json!({"nodes": {"n1": node(json!({"of": "a later time"})),
            "n2": node(json!("192.168.1.12"))}, "pods": {"a/b": 1}, "policies": {}});
        std::fs::write(&path, view.to_string()).unwrap();
        let view = last.load().unwrap().expect("a view");
        assert_eq!(view.nodes.keys().map(|n| n.as_str()).collect::<Vec<_>>(), ["n2"]);
        assert!(view.pods.is_empty());
    }
}
