//! The server that every lab pod runs, and the one of the world outside: it answers TCP, UDP and
//! HTTP with its name and with whom it sees.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};

/// Serves until the process ends.
///
/// # Errors
/// When a port cannot be listened on.
pub fn serve(name: &str, ports: &[u16]) -> Result<()> {
    let mut threads = Vec::new();
    for port in ports {
        let (tcp, udp) = listen(*port).with_context(|| format!("listen on port {port}"))?;
        let (for_tcp, for_udp) = (name.to_owned(), name.to_owned());
        threads.push(std::thread::spawn(move || tcp_loop(&tcp, &for_tcp)));
        threads.push(std::thread::spawn(move || udp_loop(&udp, &for_udp)));
    }
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

/// One socket for both families where the system has IPv6.
fn listen(port: u16) -> Result<(TcpListener, UdpSocket)> {
    let both = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    let v4 = SocketAddr::new([0, 0, 0, 0].into(), port);
    let tcp = TcpListener::bind(both).or_else(|_| TcpListener::bind(v4))?;
    let udp = UdpSocket::bind(both).or_else(|_| UdpSocket::bind(v4))?;
    Ok((tcp, udp))
}

fn greeting(name: &str, peer: SocketAddr) -> String {
    format!("{name}; you are {}\n", SocketAddr::new(plain(peer.ip()), peer.port()))
}

/// An IPv4 address that came through an IPv6 socket, as IPv4.
fn plain(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

fn tcp_loop(listener: &TcpListener, name: &str) {
    for stream in listener.incoming().flatten() {
        let name = name.to_owned();
        std::thread::spawn(move || {
            // The client may be gone at any moment; that is its own affair.
            let _ = answer(stream, &name);
        });
    }
}

/// HTTP is answered as HTTP; a client that says nothing for a moment, or anything else, gets the
/// bare line, and what follows is echoed until it closes.
fn answer(mut stream: TcpStream, name: &str) -> std::io::Result<()> {
    let text = greeting(name, stream.peer_addr()?);
    stream.set_read_timeout(Some(Duration::from_millis(300)))?;
    let mut buffer = [0; 16 * 1024];
    let n = stream.read(&mut buffer).unwrap_or(0);
    let head = &buffer[..n];
    if [b"GET ".as_slice(), b"HEAD ", b"POST ", b"PUT "].iter().any(|m| head.starts_with(m)) {
        let length = text.len();
        let reply = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n{text}"
        );
        return stream.write_all(reply.as_bytes());
    }
    stream.write_all(text.as_bytes())?;
    stream.set_read_timeout(None)?;
    stream.write_all(head)?;
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            n => stream.write_all(&buffer[..n])?,
        }
    }
}

fn udp_loop(socket: &UdpSocket, name: &str) {
    let mut buffer = [0; 64 * 1024];
    while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
        let _ = socket.send_to(greeting(name, peer).as_bytes(), peer);
    }
}
