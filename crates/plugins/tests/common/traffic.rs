//! Servers that say who they are and whom they see, and clients that ask them.
#![allow(dead_code, unreachable_pub)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use super::netns_of;

const PATIENCE: Duration = Duration::from_millis(1500);

/// Runs something in a pod's namespace, or in the node's for an empty name.
pub fn within<T: Send + 'static>(pod: &str, run: impl FnOnce() -> T + Send + 'static) -> T {
    let pod = pod.to_owned();
    let inside = move || {
        let _guard = (!pod.is_empty()).then(|| netns_of(&pod).enter().unwrap());
        run()
    };
    std::thread::spawn(inside).join().unwrap()
}

/// Serves TCP and UDP on a port of a pod for the rest of the test: answers `NAME CLIENT`.
pub fn serve(pod: &str, at: &str) {
    let (name, at) = (pod.to_owned(), at.parse::<SocketAddr>().unwrap());
    let (tcp, udp) =
        within(pod, move || (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap()));
    let called = name.clone();
    std::thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            // Gone again.
            let Ok(peer) = stream.peer_addr() else { continue };
            let text = format!("{called} {}", peer.ip().to_canonical());
            let _ = { stream }.write_all(text.as_bytes());
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = udp.recv_from(&mut buffer) {
            let text = format!("{name} {}", from.ip().to_canonical());
            let _ = udp.send_to(text.as_bytes(), from);
        }
    });
}

/// What a TCP server answers; empty when nobody does.
pub fn tcp(from: &str, to: &str) -> String {
    let to: SocketAddr = to.parse().unwrap();
    within(from, move || {
        let mut stream = match TcpStream::connect_timeout(&to, PATIENCE) {
            Ok(stream) => stream,
            Err(e) => {
                println!("{to}: {e}");
                return String::new();
            }
        };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        text
    })
}

/// What a UDP server answers; empty when nobody does.
pub fn udp(from: &str, to: &str) -> String {
    let to: SocketAddr = to.parse().unwrap();
    ask(&socket(from, to), to)
}

/// A socket in a namespace.
pub fn socket(from: &str, to: SocketAddr) -> UdpSocket {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    within(from, move || UdpSocket::bind(any).unwrap())
}

/// One question by a socket of UDP.
pub fn ask(socket: &UdpSocket, to: SocketAddr) -> String {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = socket.send_to(b"who", to);
    let mut buffer = [0; 64];
    match socket.recv_from(&mut buffer) {
        Ok((len, _)) => String::from_utf8_lossy(&buffer[..len]).into_owned(),
        Err(_) => String::new(),
    }
}

/// The body that a server of HTTP answers; empty when nobody does.
pub fn http(from: &str, to: &str, path: &str) -> String {
    let (to, request) = (to.parse::<SocketAddr>().unwrap(), format!("GET {path} HTTP/1.0\r\n\r\n"));
    within(from, move || {
        let Ok(mut stream) = TcpStream::connect_timeout(&to, PATIENCE) else {
            return String::new();
        };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut text = String::new();
        let _ = stream.write_all(request.as_bytes());
        let _ = stream.read_to_string(&mut text);
        text.split_once("\n\n").map(|(_, body)| body.trim().to_owned()).unwrap_or_default()
    })
}
