//! Signals that come at a bad moment.

use std::mem::MaybeUninit;

/// Does something while the calling thread takes none of these signals. What comes meanwhile is delivered
/// at the end: whoever sets up what hears of a signal, in several steps, loses none between them. Signals are
/// a process's; other threads take them.
pub fn held<T>(signals: &[i32], work: impl FnOnce() -> T) -> T {
    let mut set = MaybeUninit::uninit();
    let mut before = MaybeUninit::uninit();
    // SAFETY: both sets outlive the calls; sigemptyset initialises the first, and pthread_sigmask the
    // second. Numbers that are no signals are refused by sigaddset, which changes nothing then.
    #[allow(unsafe_code)]
    let before = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        if libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr()) != 0 {
            return work();
        }
        before.assume_init()
    };
    let done = work();
    // SAFETY: the set is what the call above wrote.
    #[allow(unsafe_code)]
    unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut())
    };
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    static HEARD: AtomicUsize = AtomicUsize::new(0);

    extern "C" fn hear(_: libc::c_int) {
        HEARD.fetch_add(1, Ordering::SeqCst);
    }

    #[test]
    fn a_signal_that_comes_meanwhile_comes_at_the_end() {
        // SAFETY: the handler only adds to a number, and the signal goes to this thread.
        #[allow(unsafe_code)]
        unsafe {
            libc::signal(libc::SIGUSR1, hear as *const () as libc::sighandler_t)
        };
        held(&[libc::SIGUSR1], || {
            // SAFETY: to the calling thread itself.
            #[allow(unsafe_code)]
            unsafe {
                libc::pthread_kill(libc::pthread_self(), libc::SIGUSR1)
            };
            assert_eq!(HEARD.load(Ordering::SeqCst), 0);
        });
        assert_eq!(HEARD.load(Ordering::SeqCst), 1);
    }
}
