//! The API on the wire: HTTP/1.1 and HTTP/2, headers, forms of answers, the faults endpoint.

mod api_support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use api_support::{Lab, VERSIONS};
use causeway_lab::api::{Config, Store, StoreConfig, serve};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

struct Answer {
    code: u16,
    headers: http::HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }
}

/// The certificate authority of a kubeconfig.
fn authority(kubeconfig: &str) -> CertificateDer<'static> {
    use base64::Engine;
    let line = kubeconfig
        .lines()
        .find_map(|l| l.trim().strip_prefix("certificate-authority-data: "))
        .expect("a CA");
    let pem = base64::engine::general_purpose::STANDARD.decode(line).expect("base64");
    CertificateDer::from_pem_slice(&pem).expect("PEM")
}

async fn tls(lab: &Lab, protocol: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority(&lab.kubeconfig)).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config =
        config.expect("TLS versions").with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let address = lab.url.strip_prefix("https://").expect("https");
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("127.0.0.1").expect("an address");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// Sends a request; headers override those that a good client sends.
async fn send(lab: &Lab, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let stream = TokioIo::new(tls(lab, "http/1.1").await.expect("TLS"));
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(stream).await.expect("HTTP/1.1");
    tokio::spawn(connection);
    let token = format!("Bearer {}", lab.token);
    let mut all = vec![("host", "localhost"), ("authorization", token.as_str())];
    all.retain(|(name, _)| !headers.iter().any(|(other, _)| other == name));
    let mut request = http::Request::builder().method(method).uri(path);
    for (name, value) in all.iter().chain(headers) {
        request = request.header(*name, *value);
    }
    let response =
        sender.send_request(request.body(Full::new(Bytes::from(body.to_string()))).unwrap()).await;
    let (parts, body) = response.expect("an answer").into_parts();
    let bytes = body.collect().await.expect("a body").to_bytes();
    Answer {
        code: parts.status.as_u16(),
        headers: parts.headers,
        text: String::from_utf8_lossy(&bytes).into_owned(),
    }
}

async fn get(lab: &Lab, path: &str) -> Answer {
    send(lab, "GET", path, &[], "").await
}

#[tokio::test]
async fn both_versions_of_http_are_spoken() {
    let lab = Lab::start(100);
    assert_eq!(get(&lab, "/api/v1/namespaces/default").await.json()["kind"], "Namespace");
    let stream = tls(&lab, "h2").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.unwrap();
    tokio::spawn(connection);
    for path in ["/api/v1/nodes", "/version"] {
        let request = http::Request::builder().uri(format!("https://localhost{path}"));
        let request = request.header("authorization", format!("Bearer {}", lab.token));
        let response =
            sender.send_request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
    }
}

#[tokio::test]
async fn strangers_are_refused() {
    let lab = Lab::start(100);
    for (headers, path, code) in [
        (&[("authorization", "")][..], "/api", 401),
        (&[("authorization", "Bearer x")], "/apis/anything", 401),
        (&[("authorization", "")], "/causeway.lab/faults", 401),
        (&[("authorization", "")], "/healthz", 200),
        (&[("authorization", "")], "/version", 200),
        (&[("host", "evil.example")], "/version", 403),
        (&[("origin", "https://evil.example")], "/api", 403),
        (&[("origin", "https://localhost")], "/api", 200),
    ] {
        let answer = send(&lab, "GET", path, headers, "").await;
        assert_eq!(answer.code, code, "{headers:?} {path}");
        if code > 400 {
            assert_eq!(answer.json()["kind"], "Status");
        }
    }
}

#[tokio::test]
async fn bodies_and_forms_are_negotiated() {
    let lab = Lab::start(100);
    let maps = "/api/v1/namespaces/default/configmaps";
    let yaml = [("content-type", "application/yaml")];
    let created = send(&lab, "POST", maps, &yaml, "metadata:\n  name: a\ndata: {k: v}\n").await;
    assert_eq!((created.code, created.json()["data"]["k"].as_str()), (201, Some("v")));
    assert_eq!(send(&lab, "POST", maps, &[], "{").await.code, 400);
    assert_eq!(
        send(&lab, "POST", maps, &[("content-type", "application/cbor")], "x").await.code,
        415
    );
    let large = format!("{{\"x\":\"{}\"}}", "x".repeat(3 * 1024 * 1024));
    assert_eq!(send(&lab, "POST", maps, &[], &large).await.code, 413);
    assert_eq!(send(&lab, "PATCH", &format!("{maps}/a"), &[], "{}").await.code, 415);
    assert_eq!(send(&lab, "PUT", maps, &[], "{}").await.code, 405);
    assert_eq!(get(&lab, "/apis/apps/v1/deployments").await.code, 404);
    assert_eq!(get(&lab, "/api/v1/namespaces/default/nodes").await.code, 404);

    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    let rows = send(&lab, "GET", maps, &table, "").await.json();
    assert_eq!((&rows["kind"], &rows["rows"][0]["cells"][0]), (&json!("Table"), &json!("a")));
    assert_eq!(rows["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(
        send(&lab, "GET", maps, &[("accept", "application/vnd.kubernetes.protobuf")], "")
            .await
            .code,
        406
    );

    let service = r#"{"metadata":{"name":"s"},"spec":{"ports":[{"port":80}]}}"#;
    let answer = send(&lab, "POST", "/api/v1/namespaces/default/services", &[], service).await;
    assert!(
        answer.headers["warning"].to_str().unwrap().starts_with("299 - \"the lab stores Services")
    );
    let openapi = send(
        &lab,
        "GET",
        "/openapi/v2",
        &[("accept", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf")],
        "",
    )
    .await;
    assert_eq!((openapi.code, openapi.text.as_str()), (200, ""));
}

#[tokio::test]
async fn versions_are_asked_for_as_documented() {
    for kubernetes in VERSIONS {
        resource_versions(&Lab::start_as(kubernetes, 100)).await;
    }
}

async fn resource_versions(lab: &Lab) {
    let maps = "/api/v1/namespaces/default/configmaps";
    let first =
        get(lab, maps).await.json()["metadata"]["resourceVersion"].as_str().unwrap().to_string();
    send(lab, "POST", maps, &[], r#"{"metadata":{"name":"a"}}"#).await;
    let count = async |query: String| {
        get(lab, &format!("{maps}?{query}")).await.json()["items"].as_array().map(Vec::len)
    };
    assert_eq!(count(format!("resourceVersion={first}")).await, Some(1));
    assert_eq!(count(format!("resourceVersion={first}&limit=9")).await, Some(0));
    assert_eq!(count(format!("resourceVersion={first}&resourceVersionMatch=Exact")).await, Some(0));
    assert_eq!(
        count(format!("resourceVersion={first}&resourceVersionMatch=NotOlderThan")).await,
        Some(1)
    );
    assert_eq!(count("resourceVersion=0&limit=1".into()).await, Some(1));
    for (query, code) in [
        ("resourceVersion=99999999999999".to_string(), 504),
        ("resourceVersion=1&resourceVersionMatch=Exact".into(), 410),
        ("resourceVersionMatch=Exact".into(), 400),
        ("resourceVersion=x".into(), 400),
        ("labelSelector=a%20b".into(), 400),
        ("fieldSelector=spec.color=red".into(), 400),
        ("watch=1&sendInitialEvents=true".into(), 422),
    ] {
        assert_eq!(get(lab, &format!("{maps}?{query}")).await.code, code, "{query}");
    }
    // A watch that ends tells its version.
    let events = get(
        lab,
        &format!(
            "{maps}?watch=1&timeoutSeconds=1&allowWatchBookmarks=true&resourceVersion={first}"
        ),
    )
    .await;
    let events: Vec<Value> =
        events.text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(
        (&events[0]["type"], &events[0]["object"]["metadata"]["name"]),
        (&json!("ADDED"), &json!("a"))
    );
    assert!(events.len() > 2 && events[1..].iter().all(|e| e["type"] == "BOOKMARK"), "{events:?}");
    let old = get(lab, &format!("{maps}?watch=1&resourceVersion=1")).await;
    assert_eq!(
        (old.code, &old.json()["type"], &old.json()["object"]["code"]),
        (200, &json!("ERROR"), &json!(410))
    );
}

/// What tells versions apart on the wire.
#[tokio::test]
async fn each_version_serves_what_its_gates_say() {
    for (kubernetes, streams, beta, v2) in [
        ("1.28", false, true, false),
        ("1.31", false, true, true),
        ("1.32", true, true, true),
        ("1.33", false, false, true),
        ("1.37", true, false, true),
    ] {
        let lab = Lab::start_as(kubernetes.parse().unwrap(), 100);
        let version = get(&lab, "/version").await.json();
        let minor = kubernetes.strip_prefix("1.").unwrap();
        assert_eq!((&version["major"], &version["minor"]), (&json!("1"), &json!(minor)));
        let git = version["gitVersion"].as_str().unwrap();
        assert!(git.starts_with(&format!("v{kubernetes}.0+")), "{git}");

        let stream = "/api/v1/namespaces?watch=1&sendInitialEvents=true&allowWatchBookmarks=true\
                      &resourceVersionMatch=NotOlderThan&timeoutSeconds=1";
        let answer = get(&lab, stream).await;
        if streams {
            let mark = "\"k8s.io/initial-events-end\":\"true\"";
            assert_eq!(answer.text.matches(mark).count(), 1, "{kubernetes}: {}", answer.text);
        } else {
            let said = answer.json();
            assert_eq!((answer.code, &said["reason"]), (422, &json!("Invalid")));
            assert_eq!(said["details"]["causes"][0]["field"], "sendInitialEvents");
            let words = "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: \
                         sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            assert_eq!(said["message"], words);
        }
        for (by, there) in [("v2beta1", beta), ("v2", v2)] {
            let kind =
                format!("application/json;g=apidiscovery.k8s.io;v={by};as=APIGroupDiscoveryList");
            let asked = format!("{kind},application/json");
            for path in ["/api", "/apis"] {
                let answer = send(&lab, "GET", path, &[("accept", &asked)], "").await;
                let said = answer.headers["content-type"].to_str().unwrap();
                assert_eq!(said == kind, there, "{kubernetes} {by} {path}: {said}");
                let version = answer.json()["apiVersion"].clone();
                assert_eq!(version == json!(format!("apidiscovery.k8s.io/{by}")), there);
            }
        }
    }
}

#[tokio::test]
async fn many_objects_are_loaded_at_once() {
    let lab = Lab::start(100);
    let load = async |body: &str| send(&lab, "POST", "/causeway.lab/objects", &[], body).await;
    let item = |n: u8| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": format!("n{n}") } });
    let list = json!({ "items": (0..3).map(item).collect::<Vec<_>>() }).to_string();
    let answer = load(&list).await;
    assert_eq!((answer.code, answer.json()), (201, json!({ "created": 3 })));
    assert_eq!(get(&lab, "/api/v1/namespaces/n2").await.code, 200);
    assert_eq!(load(&list).await.code, 409);
    assert_eq!(load("{}").await.code, 400);
    assert_eq!(get(&lab, "/causeway.lab/objects").await.code, 405);
}

#[tokio::test]
async fn faults_are_set_over_the_network() {
    let lab = Lab::start(100);
    let set = async |body: &str| send(&lab, "PUT", "/causeway.lab/faults", &[], body).await.code;
    assert_eq!(set(r#"{"explode":true}"#).await, 400);
    assert_eq!(set(r#"{"tooManyRequestsSeconds":60,"retryAfterSeconds":7}"#).await, 200);
    let busy = get(&lab, "/api/v1/nodes").await;
    assert_eq!((busy.code, busy.headers["retry-after"].to_str().unwrap()), (429, "7"));
    assert!(busy.text.starts_with("Too many requests"), "{}", busy.text);
    assert_eq!(get(&lab, "/readyz").await.code, 200);

    set(r#"{"latencyMs":150}"#).await;
    let start = Instant::now();
    get(&lab, "/api/v1/nodes").await;
    assert!(start.elapsed() >= Duration::from_millis(150));

    set(r#"{"stallSeconds":0.4}"#).await;
    let start = Instant::now();
    assert_eq!(get(&lab, "/api/v1/nodes").await.code, 200);
    assert!(start.elapsed() >= Duration::from_millis(300));

    set(r#"{"goneSeconds":60}"#).await;
    assert_eq!(get(&lab, "/api/v1/nodes?resourceVersion=99").await.code, 410);
    assert_eq!(get(&lab, "/api/v1/nodes").await.code, 200);
    let left = get(&lab, "/causeway.lab/faults").await.json()["goneSeconds"].as_f64().unwrap();
    assert!(left > 50.0 && left < 60.0);

    set(r#"{"refuseSeconds":0.4}"#).await;
    assert!(tls(&lab, "http/1.1").await.is_err());
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(get(&lab, "/api/v1/nodes").await.code, 200);
}

#[tokio::test]
async fn several_sockets_are_served_until_the_end() {
    let config = Config::new("two", vec!["127.0.0.1".into()]).unwrap();
    let sockets = [0, 1].map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let addresses = [0, 1].map(|i: usize| sockets[i].local_addr().unwrap());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let shutdown = async move { drop(stopped.await) };
    let serving =
        tokio::spawn(serve(config, Store::new(StoreConfig::default()), sockets.into(), shutdown));
    for address in addresses {
        TcpStream::connect(address).await.unwrap();
    }
    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();
    assert!(TcpStream::connect(addresses[0]).await.is_err());
}
