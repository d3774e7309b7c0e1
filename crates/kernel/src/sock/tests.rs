//! The parts that need no kernel.

use super::*;

const DATA: u16 = 16;

fn message(kind: u16, flags: u16, seq: u32, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Request::new(kind, flags, body.to_vec()).write(&mut out, seq);
    out
}

fn done(seq: u32, code: i32) -> Vec<u8> {
    message(NLMSG_DONE, 0, seq, &code.to_ne_bytes())
}

/// `NLMSG_ERROR` with CAPPED and the kernel's words.
fn refusal(seq: u32, errno: i32, words: &str) -> Vec<u8> {
    let mut body = (-errno).to_ne_bytes().to_vec();
    body.extend_from_slice(&[0; HEADER]);
    body.extend_from_slice(&(4 + words.len() as u16 + 1).to_ne_bytes());
    body.extend_from_slice(&ATTR_MSG.to_ne_bytes());
    body.extend_from_slice(words.as_bytes());
    body.push(0);
    message(NLMSG_ERROR, CAPPED | ACK_TLVS, seq, &body)
}

fn read(datagrams: &[Vec<u8>], seq: u32) -> (Result<Progress, Refusal>, usize) {
    let mut reader = DumpReader::default();
    let mut seen = 0;
    let mut last = Ok(Progress::More);
    for datagram in datagrams {
        last = reader.read(datagram, seq, |_| seen += 1);
        if last != Ok(Progress::More) {
            break;
        }
    }
    (last, seen)
}

#[test]
fn a_dump_ends_with_done() {
    let first = [message(DATA, 0, 7, &[1; 4]), message(DATA, 0, 7, &[2; 4])].concat();
    assert_eq!(read(std::slice::from_ref(&first), 7), (Ok(Progress::More), 2));
    assert_eq!(read(&[first, done(7, 0)], 7), (Ok(Progress::Done), 2));
}

#[test]
fn a_dump_that_changed_anywhere_is_interrupted() {
    let plain = message(DATA, 0, 7, &[1; 4]);
    let marked = message(DATA, DUMP_INTR, 7, &[2; 4]);
    let all = [plain.clone(), marked, plain.clone(), done(7, 0)];
    assert_eq!(read(&all, 7).0, Ok(Progress::Interrupted));
    let last = message(NLMSG_DONE, DUMP_INTR, 7, &[0; 4]);
    assert_eq!(read(&[plain, last], 7).0, Ok(Progress::Interrupted));
}

#[test]
fn left_overs_of_another_exchange_are_passed_over() {
    let all = [message(DATA, DUMP_INTR, 6, &[1; 4]), done(6, 0), done(7, 0)];
    assert_eq!(read(&all, 7), (Ok(Progress::Done), 0));
}

#[test]
fn a_refused_dump_has_the_kernels_words() {
    let (outcome, _) = read(&[refusal(7, libc::EINVAL, "No such thing")], 7);
    let refusal = outcome.unwrap_err();
    assert_eq!(refusal.errno, libc::EINVAL);
    assert_eq!(refusal.message.as_deref(), Some("No such thing"));
    assert_eq!(refusal.to_string(), "No such thing (Invalid argument (os error 22))");
    assert!(read(&[done(7, -libc::ENOENT)], 7).0.unwrap_err().is_gone());
}

#[test]
fn torn_datagrams_are_no_danger() {
    let whole = [message(DATA, 0, 7, &[1; 40]), refusal(7, 1, "words")].concat();
    for len in 0..whole.len() {
        for reply in Reply::split(&whole[..len]) {
            let _ = reply.outcome();
            let _ = attributes(reply.body).count();
        }
    }
    let mut endless = whole.clone();
    endless[..4].copy_from_slice(&0u32.to_ne_bytes());
    assert_eq!(Reply::split(&endless).count(), 0);
    assert_eq!(attributes(&[0; 64]).count(), 0);
}

#[test]
fn chunks_hold_what_fits() {
    let small = Request::new(DATA, 0, vec![0; 44]);
    assert_eq!(chunk(&vec![small.clone(); 500]), 500);
    assert_eq!(chunk(&vec![small; 5000]), ACKS_CHUNK);
    let large = Request::new(DATA, 0, vec![0; SEND_CHUNK]);
    assert_eq!(chunk(&[large.clone(), large]), 1);
}
