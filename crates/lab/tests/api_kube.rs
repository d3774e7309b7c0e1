//! kube-rs, the client that the agent uses, against the lab's API.

mod api_support;

use std::collections::BTreeSet;
use std::time::Duration;

use api_support::Lab;
use causeway_lab::api::FaultSettings;
use futures::{StreamExt, TryStreamExt, pin_mut};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch,
    PatchParams, PostParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::PartialObjectMeta;
use kube::discovery::Discovery;
use kube::runtime::watcher::{Config as WatcherConfig, Event};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Client, ResourceExt};
use serde_json::json;

async fn client(lab: &Lab) -> Client {
    let file = Kubeconfig::from_yaml(&lab.kubeconfig).expect("a kubeconfig");
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .expect("a config");
    assert_eq!(config.default_namespace, "default");
    Client::try_from(config).expect("a client")
}

fn map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({ "metadata": { "name": name }, "data": { "a": "b" } }))
        .expect("a config map")
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"))
}

fn code(result: Result<impl std::fmt::Debug, kube::Error>) -> u16 {
    match result {
        Err(kube::Error::Api(status)) => status.code,
        other => panic!("no API error: {other:?}"),
    }
}

#[tokio::test]
async fn objects_are_made_read_changed_and_removed() {
    let lab = Lab::start(1000);
    let client = client(&lab).await;
    assert_eq!(client.apiserver_version().await.unwrap().minor, "37");
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let created = maps.create(&PostParams::default(), &map("a")).await.unwrap();
    assert_eq!(code(maps.create(&PostParams::default(), &map("a")).await), 409);
    assert_eq!(code(maps.get("b").await), 404);

    let mut newer = created.clone();
    newer.data.as_mut().unwrap().insert("c".into(), "d".into());
    let newer = maps.replace("a", &PostParams::default(), &newer).await.unwrap();
    assert_eq!(code(maps.replace("a", &PostParams::default(), &created).await), 409);
    assert_eq!(newer.data.unwrap()["c"], "d");

    for i in 0..5 {
        maps.create(&PostParams::default(), &map(&format!("m{i}"))).await.unwrap();
    }
    let page = maps.list(&ListParams::default().limit(4)).await.unwrap();
    assert_eq!((page.items.len(), page.metadata.remaining_item_count), (4, Some(2)));
    let token = page.metadata.continue_.unwrap();
    let rest = maps.list(&ListParams::default().limit(4).continue_token(&token)).await.unwrap();
    assert_eq!((rest.items.len(), rest.metadata.continue_.unwrap_or_default().as_str()), (2, ""));
    assert_eq!(maps.list_metadata(&ListParams::default()).await.unwrap().items.len(), 6);
    let one = maps.list(&ListParams::default().fields("metadata.name=m3")).await.unwrap();
    assert_eq!(one.items[0].name_any(), "m3");

    assert!(maps.delete("a", &DeleteParams::default()).await.unwrap().is_right());
    maps.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    assert!(maps.list(&ListParams::default()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn nodes_take_status_patches_and_keep_their_pod_cidrs() {
    let lab = Lab::start(1000);
    let nodes: Api<Node> = Api::all(client(&lab).await);
    let node: Node = serde_json::from_value(json!({ "metadata": { "name": "cp" } })).unwrap();
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let status = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True", "lastHeartbeatTime": null, "lastTransitionTime": null }] } });
    let node =
        nodes.patch_status("cp", &PatchParams::default(), &Patch::Strategic(status)).await.unwrap();
    assert_eq!(node.status.unwrap().conditions.unwrap()[0].type_, "Ready");
    let allocated = async {
        while nodes.get("cp").await.unwrap().spec.and_then(|s| s.pod_cidrs).is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("pod CIDRs", allocated).await;
    let other = json!({ "spec": { "podCIDR": "10.9.0.0/24", "podCIDRs": ["10.9.0.0/24"] } });
    assert_eq!(code(nodes.patch("cp", &PatchParams::default(), &Patch::Merge(other)).await), 422);
}

#[tokio::test]
async fn an_apply_creates_changes_and_takes_back() {
    let lab = Lab::start(1000);
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&lab).await);
    let apply = async |manager: &str, data: serde_json::Value| {
        let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": data });
        maps.patch("a", &PatchParams::apply(manager), &Patch::Apply(object)).await.unwrap()
    };
    assert_eq!(apply("one", json!({ "x": "1", "y": "1" })).await.data.unwrap().len(), 2);
    assert_eq!(apply("two", json!({ "z": "1" })).await.data.unwrap().len(), 3);
    let data = apply("one", json!({ "x": "2" })).await.data.unwrap();
    assert_eq!((data.len(), data["x"].as_str(), data["z"].as_str()), (2, "2", "1"));
}

/// What a watcher tells until its list is complete; errors on the way only take time.
async fn initial(
    stream: &mut (impl futures::Stream<Item = Result<Event<ConfigMap>, watcher::Error>> + Unpin),
) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    loop {
        let Ok(event) = within("initial list", stream.next()).await.unwrap() else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        match event {
            Event::Init => names.clear(),
            Event::InitApply(object) => drop(names.insert(object.name_any())),
            Event::InitDone => return names,
            Event::Apply(_) | Event::Delete(_) => panic!("an event before the list is complete"),
        }
    }
}

async fn watch_with(config: WatcherConfig) {
    let lab = Lab::start(1000);
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&lab).await);
    for i in 0..5 {
        maps.create(&PostParams::default(), &map(&format!("m{i}"))).await.unwrap();
    }
    let stream = watcher(maps.clone(), config);
    pin_mut!(stream);
    assert_eq!(initial(&mut stream).await.len(), 5);

    maps.create(&PostParams::default(), &map("later")).await.unwrap();
    let event = within("a new object", stream.try_next()).await.unwrap().unwrap();
    assert!(matches!(event, Event::Apply(object) if object.name_any() == "later"));

    // A cut watch goes on where it was: nothing is told twice, nothing is lost.
    lab.faults.set(&FaultSettings { cut_watches: true, ..Default::default() });
    maps.delete("m1", &DeleteParams::default()).await.unwrap();
    let event = within("a removal", stream.next()).await.unwrap().unwrap();
    assert!(matches!(event, Event::Delete(object) if object.name_any() == "m1"));

    // A forgotten history makes it list again.
    lab.faults.set(&FaultSettings { gone_seconds: 0.2, ..Default::default() });
    let again = within("410", stream.next()).await.unwrap();
    assert!(again.is_err(), "{again:?}");
    let names = initial(&mut stream).await;
    assert_eq!(names, BTreeSet::from(["later", "m0", "m2", "m3", "m4"].map(String::from)));
}

#[tokio::test]
async fn a_watcher_with_streaming_lists_follows() {
    watch_with(WatcherConfig::default().streaming_lists()).await;
}

#[tokio::test]
async fn a_watcher_with_paged_lists_follows() {
    watch_with(WatcherConfig::default().page_size(2)).await;
}

#[tokio::test]
async fn a_reflector_survives_everything() {
    let lab = Lab::start(20);
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&lab).await);
    let (reader, writer) = reflector::store();
    let stream =
        watcher(maps.clone(), WatcherConfig::default().streaming_lists()).default_backoff();
    let following =
        tokio::spawn(reflector(writer, stream).applied_objects().for_each(async |_| ()));
    within("ready", reader.wait_until_ready()).await.unwrap();

    let faults = [
        FaultSettings { cut_watches: true, ..Default::default() },
        FaultSettings { gone_seconds: 0.3, ..Default::default() },
        FaultSettings { too_many_requests_seconds: 0.3, cut_watches: true, ..Default::default() },
        FaultSettings { stall_seconds: 0.3, ..Default::default() },
        FaultSettings { refuse_seconds: 0.3, ..Default::default() },
        FaultSettings { latency_ms: 20, cut_watches: true, ..Default::default() },
    ];
    for (i, fault) in faults.iter().enumerate() {
        lab.faults.set(fault);
        // More than the window holds.
        for j in 0..25 {
            let name = format!("m{i}-{j}");
            lab.store
                .create("configmaps", "default", serde_json::to_value(map(&name)).unwrap(), false)
                .unwrap();
        }
        let caught_up = async {
            while reader.len() != (i + 1) * 25 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within(&format!("caught up after {fault:?}"), caught_up).await;
    }
    following.abort();
}

#[tokio::test]
async fn metadata_can_be_watched_alone() {
    let lab = Lab::start(1000);
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&lab).await);
    maps.create(&PostParams::default(), &map("a")).await.unwrap();
    let metadata: Api<PartialObjectMeta<ConfigMap>> = Api::default_namespaced(maps.into_client());
    let stream = watcher(metadata, WatcherConfig::default()).applied_objects();
    pin_mut!(stream);
    let object = within("metadata", stream.try_next()).await.unwrap().unwrap();
    assert_eq!(object.name_any(), "a");
}

#[tokio::test]
async fn custom_types_are_discovered_and_used() {
    let lab = Lab::start(1000);
    let client = client(&lab).await;
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let definition = serde_json::from_value(json!({
        "metadata": { "name": "roads.example.dev" },
        "spec": { "group": "example.dev", "scope": "Namespaced", "names": { "plural": "roads", "kind": "Road", "singular": "road" },
                  "versions": [{ "name": "v1", "served": true, "storage": true, "subresources": { "status": {} },
                                 "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } } }] },
    }));
    definitions.create(&PostParams::default(), &definition.unwrap()).await.unwrap();
    let kind = GroupVersionKind::gvk("example.dev", "v1", "Road");
    for discovery in [
        Discovery::new(client.clone()).run().await,
        Discovery::new(client.clone()).run_aggregated().await,
    ] {
        let discovery = discovery.unwrap();
        let (resource, _) = discovery.resolve_gvk(&kind).expect("the new type is discovered");
        assert_eq!(resource.plural, "roads");
        assert!(discovery.resolve_gvk(&GroupVersionKind::gvk("", "v1", "Pod")).is_some());
        assert!(
            discovery.resolve_gvk(&GroupVersionKind::gvk("apps", "v1", "Deployment")).is_none()
        );
    }
    let resource = ApiResource::from_gvk(&kind);
    let roads: Api<DynamicObject> = Api::default_namespaced_with(client, &resource);
    let road = DynamicObject::new("r", &resource).data(json!({ "spec": { "peer": "a" } }));
    roads.create(&PostParams::default(), &road).await.unwrap();
    let status = Patch::Merge(json!({ "status": { "up": true }, "spec": { "peer": "ignored" } }));
    let road = roads.patch_status("r", &PatchParams::default(), &status).await.unwrap();
    assert_eq!(
        (&road.data["status"]["up"], &road.data["spec"]["peer"]),
        (&json!(true), &json!("a"))
    );
    let strategic = Patch::Strategic(json!({ "spec": {} }));
    assert_eq!(code(roads.patch("r", &PatchParams::default(), &strategic).await), 415);
}

#[tokio::test]
async fn pods_of_a_node_are_selected_and_leave_with_grace() {
    let lab = Lab::start(1000);
    let client = client(&lab).await;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let pod = |name: &str| {
        serde_json::from_value(json!({ "metadata": { "name": name }, "spec": { "containers": [{ "name": "c", "image": "c" }] } })).unwrap()
    };
    pods.create(&PostParams::default(), &pod("a")).await.unwrap();
    pods.create(&PostParams::default(), &pod("b")).await.unwrap();
    let stream =
        watcher(Api::<Pod>::all(client), WatcherConfig::default().fields("spec.nodeName=node-1"));
    pin_mut!(stream);
    let done =
        async { while !matches!(stream.try_next().await.unwrap().unwrap(), Event::InitDone) {} };
    within("an empty list", done).await;
    causeway_lab::api::controllers::bind(&lab.store, "default", "a", "node-1").unwrap();
    let event = within("the bound pod", stream.try_next()).await.unwrap().unwrap();
    assert!(matches!(event, Event::Apply(pod) if pod.name_any() == "a"));
    let leaving = pods.delete("a", &DeleteParams::default()).await.unwrap().unwrap_left();
    assert_eq!(leaving.metadata.deletion_grace_period_seconds, Some(30));
    assert!(matches!(
        within("the mark", stream.try_next()).await.unwrap().unwrap(),
        Event::Apply(_)
    ));
    pods.delete("a", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert!(matches!(
        within("the end", stream.try_next()).await.unwrap().unwrap(),
        Event::Delete(_)
    ));
}

#[tokio::test]
async fn nobody_gets_in_without_the_token() {
    let lab = Lab::start(1000);
    let mut file = Kubeconfig::from_yaml(&lab.kubeconfig).unwrap();
    file.auth_infos[0].auth_info.as_mut().unwrap().token = Some("wrong".to_string().into());
    let config =
        kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    let client = Client::try_from(config).unwrap();
    assert_eq!(code(Api::<Pod>::all(client.clone()).list(&ListParams::default()).await), 401);
    assert!(client.apiserver_version().await.is_ok());
}
