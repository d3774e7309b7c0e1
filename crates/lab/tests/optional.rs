//! A kind that a cluster may not have: its definition comes and goes while its feed runs, and keeps nothing
//! else waiting. Against API servers of the oldest and of the newest Kubernetes: discovery of one kind and
//! of the other.

mod api_support;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use api_support::{Lab, VERSIONS};
use causeway_cluster::{Cluster, Connection, OptionalKind, OptionalView};
use causeway_lab::api::{DeleteOptions, FaultSettings, Key};
use causeway_types::NodeName;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::ClusterResourceScope;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;

/// What is promised: nobody waits longer for a kind that appears, or goes.
const SOON: Duration = Duration::from_secs(5);
const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";

#[derive(Clone, Debug, Deserialize)]
struct Lantern {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Spec,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Spec {
    #[serde(default)]
    color: String,
}

impl kube::Resource for Lantern {
    type DynamicType = ();
    type Scope = ClusterResourceScope;
    fn kind(_: &()) -> Cow<'_, str> {
        "Lantern".into()
    }
    fn group(_: &()) -> Cow<'_, str> {
        "example.dev".into()
    }
    fn version(_: &()) -> Cow<'_, str> {
        "v1".into()
    }
    fn plural(_: &()) -> Cow<'_, str> {
        "lanterns".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

struct Lanterns;

impl OptionalKind for Lanterns {
    type Object = Lantern;
    type Info = String;
    fn convert(object: &Lantern) -> Option<(String, String)> {
        Some((object.metadata.name.clone()?, object.spec.color.clone()))
    }
}

type View = OptionalView<String>;

fn define(lab: &Lab, version: &str) {
    let definition = json!({"metadata": {"name": "lanterns.example.dev"}, "spec": {
        "group": "example.dev", "scope": "Cluster",
        "names": {"plural": "lanterns", "kind": "Lantern"},
        "versions": [{"name": version, "served": true, "storage": true}]}});
    lab.store.create(DEFINITIONS, "", definition, false).unwrap();
}

fn undefine(lab: &Lab) {
    let key = Key::new("", "lanterns.example.dev");
    lab.store.delete(DEFINITIONS, &key, &DeleteOptions::default()).unwrap();
}

fn lantern(lab: &Lab, name: &str, color: &str) {
    let object = json!({"metadata": {"name": name}, "spec": {"color": color}});
    lab.store.create("lanterns.example.dev", "", object, false).unwrap();
}

fn absent() -> View {
    View { served: false, synced: true, objects: BTreeMap::new() }
}

fn lit(objects: &[(&str, &str)]) -> View {
    let objects = objects.iter().map(|(name, color)| ((*name).into(), (*color).into())).collect();
    View { served: true, synced: true, objects }
}

/// Waits until the view is so.
#[track_caller]
fn becomes(
    what: &str,
    view: &watch::Receiver<View>,
    wanted: View,
) -> impl Future<Output = ()> + use<> {
    let (mut view, what, began) = (view.clone(), what.to_owned(), Instant::now());
    async move {
        let good = tokio::time::timeout(SOON, view.wait_for(|v| *v == wanted)).await.is_ok();
        assert!(good, "{what}: not within {SOON:?}: {:?} in place of {wanted:?}", *view.borrow());
        println!("{what}: {:?}", began.elapsed());
    }
}

async fn on_both<F: Future<Output = ()> + Send + 'static>(test: impl Fn(Lab) -> F) {
    for version in VERSIONS {
        println!("Kubernetes {version}");
        tokio::spawn(test(Lab::start_as(version, 1000))).await.unwrap();
    }
}

/// A node that follows the kind beside its own feeds.
fn start(lab: &Lab) -> (Cluster, watch::Receiver<View>, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &lab.kubeconfig).unwrap();
    let connection = Connection { kubeconfig: Some(file.path().into()), ..Default::default() };
    let mut cluster = Cluster::watch(connection, NodeName::new("n0").unwrap());
    let view = cluster.follow::<Lanterns>();
    (cluster, view, file)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_comes_goes_and_comes_again() {
    on_both(|lab| async move {
        let (cluster, view, _file) = start(&lab);
        let served = || cluster.health.optionals()["lanterns.example.dev"].served;
        becomes("there is none", &view, absent()).await;
        assert!(!served());
        let mut snapshots = cluster.snapshots.clone();
        let others = snapshots.wait_for(causeway_cluster::Snapshot::synced);
        tokio::time::timeout(SOON, others).await.expect("the others are in sync").unwrap();
        for round in 0..2 {
            define(&lab, "v1");
            lantern(&lab, "a", "red");
            becomes("the kind appears", &view, lit(&[("a", "red")])).await;
            assert!(served());
            lantern(&lab, "b", "blue");
            becomes("its watch runs", &view, lit(&[("a", "red"), ("b", "blue")])).await;
            undefine(&lab);
            becomes(&format!("it goes, {round}"), &view, absent()).await;
            assert!(!served());
        }
        let health = &cluster.health.optionals()["lanterns.example.dev"];
        assert!(health.feed.error.is_none(), "{health:?}");
    })
    .await;
}

/// The kind is there in another version alone: that is as if it were not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_version_is_another_kind() {
    on_both(|lab| async move {
        define(&lab, "v1alpha1");
        let (_cluster, view, _file) = start(&lab);
        becomes("there is none", &view, absent()).await;
        undefine(&lab);
        define(&lab, "v1");
        becomes("now there is", &view, lit(&[])).await;
    })
    .await;
}

/// An API that is away has not lost the kind: what is not known is not removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_known_stays() {
    on_both(|lab| async move {
        define(&lab, "v1");
        lantern(&lab, "a", "red");
        let (_cluster, view, _file) = start(&lab);
        becomes("the kind is there", &view, lit(&[("a", "red")])).await;
        lab.faults.set(&FaultSettings { refuse_seconds: 8.0, ..FaultSettings::default() });
        // Nothing of it is told any more.
        tokio::time::sleep(Duration::from_millis(500)).await;
        undefine(&lab);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(*view.borrow(), lit(&[("a", "red")]));
        // Pauses have grown meanwhile.
        let mut view = view;
        let gone = tokio::time::timeout(Duration::from_secs(40), view.wait_for(|v| *v == absent()));
        assert!(gone.await.is_ok(), "it is not told that the kind went");
    })
    .await;
}
