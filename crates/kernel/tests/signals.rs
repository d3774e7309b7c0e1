//! A signal in the middle of an exchange does no harm.

mod common;

use std::sync::mpsc;
use std::time::Duration;

use causeway_kernel::sock::{Bus, Reply, Socket};
use common::*;

extern "C" fn nothing(_: libc::c_int) {}

#[test]
fn an_interrupted_read_goes_on() {
    let _h = start();
    // SAFETY: the action is zeroed, which is a valid value, then given a handler that does
    // nothing; without SA_RESTART, so that blocked calls end with EINTR.
    #[allow(unsafe_code)]
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()), 0);
    }
    let (send, thread_id) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut socket = Socket::open(Bus::Route).unwrap();
        socket.join(1).unwrap();
        send.send(rustix::thread::gettid()).unwrap();
        Reply::split(socket.receive().unwrap()).count()
    });
    let thread = thread_id.recv().unwrap();
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(5));
        // SAFETY: a signal to a thread of this process, which has a handler for it.
        #[allow(unsafe_code)]
        let sent = unsafe {
            libc::syscall(
                libc::SYS_tgkill,
                std::process::id(),
                thread.as_raw_nonzero().get(),
                libc::SIGUSR1,
            )
        };
        assert_eq!(sent, 0);
    }
    assert!(!reader.is_finished(), "the read ended by a signal");
    run("ip link add cw-br type bridge");
    assert!(reader.join().unwrap() > 0);
}
