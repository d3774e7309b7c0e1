//! A plugin under ptrace that is held as it enters a system call.
#![allow(dead_code, unreachable_pub)]

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;

use super::{Answer, Node, finish};

/// `PTRACE_EVENT_EXEC` (`linux/ptrace.h`).
const EXEC: i32 = 4;

/// It is held between two calls of [`Held::next`], which the thread must make that started it.
pub struct Held {
    pid: Pid,
    child: Child,
    begun: bool,
    running: bool,
    stops: usize,
    code: Option<i32>,
}

impl Held {
    /// Starts a plugin; it has not begun yet.
    #[allow(clippy::zombie_processes, reason = "waitpid waits for it, stop by stop")]
    pub fn start(node: &Node, command: &str, container: &str, conf: &Value, args: &str) -> Self {
        let program = format!("{}/{}", node.bin_dir, conf["type"].as_str().unwrap());
        // Stopped before it becomes the plugin, so that no system call of the plugin is missed.
        let mut child = Command::new("/bin/sh")
            .args(["-c", "kill -STOP $$; exec \"$0\"", &program])
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", container)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", format!("/run/netns/{container}"))
            .env("CNI_PATH", &node.bin_dir)
            .env("CNI_ARGS", args)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert_eq!(stopped, WaitStatus::Stopped(pid, Signal::SIGSTOP));
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_EXITKILL;
        ptrace::seize(pid, options).unwrap();
        kill(pid, Signal::SIGCONT).unwrap();
        Self { pid, child, begun: false, running: false, stops: 0, code: None }
    }

    /// Goes on to the entry of the next system call; false when it ended before that.
    pub fn next(&mut self) -> bool {
        while self.code.is_none() {
            if std::mem::replace(&mut self.begun, true) {
                ptrace::syscall(self.pid, None).unwrap();
            }
            match waitpid(self.pid, None).unwrap() {
                WaitStatus::Exited(_, code) => self.code = Some(code),
                WaitStatus::PtraceEvent(_, _, EXEC) => self.running = true,
                WaitStatus::PtraceSyscall(_) if self.running => {
                    self.stops += 1;
                    // One stop at the entry and one at the end of each; the first is that of exec.
                    if self.stops.is_multiple_of(2) {
                        return true;
                    }
                }
                other => assert!(!matches!(other, WaitStatus::Signaled(..)), "{other:?}"),
            }
        }
        false
    }

    /// It has ended by itself.
    pub fn is_over(&self) -> bool {
        self.code.is_some()
    }

    /// Goes on to the entry of system call number `at`, counted from 1.
    pub fn reach(&mut self, at: usize) -> bool {
        (0..at).all(|_| self.next())
    }

    /// The number of the system call that it is about to make, and its arguments (proc_pid_syscall(5)).
    pub fn system_call(&self) -> (i64, Vec<u64>) {
        let text = std::fs::read_to_string(format!("/proc/{}/syscall", self.pid)).unwrap();
        let mut words = text.split_whitespace();
        let number = words.next().unwrap().parse().unwrap();
        let hex = |w: &str| u64::from_str_radix(w.trim_start_matches("0x"), 16).unwrap();
        (number, words.map(hex).collect())
    }

    /// A text in its memory.
    pub fn text_at(&self, address: u64) -> String {
        use std::os::unix::fs::FileExt;
        let memory = std::fs::File::open(format!("/proc/{}/mem", self.pid)).unwrap();
        let mut bytes = [0; 256];
        let n = memory.read_at(&mut bytes, address).unwrap_or(0);
        let end = bytes[..n].iter().position(|b| *b == 0).unwrap_or(n);
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    }

    /// Kills it before it makes the system call.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        let _ = waitpid(self.pid, None);
    }

    /// Lets it go on to its end.
    pub fn finish(mut self) -> Answer {
        let Some(code) = self.code else {
            ptrace::detach(self.pid, None).unwrap();
            return super::finish(self.child);
        };
        let mut stdout = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        let json = serde_json::from_str(&stdout).unwrap_or(Value::Null);
        Answer { code, json, stdout, stderr: String::new() }
    }
}

/// Holds ADD of a pod as it enters its system call number `at`, and runs GC of the network, to which
/// nothing is valid, meanwhile. Answers what ADD says in the end, and whether GC had ended before that;
/// `None` when ADD ended before that system call.
pub fn gc_beside_add(node: &Node, pod: &str, conf: &Value, at: usize) -> Option<(Answer, bool)> {
    let mut add = Held::start(node, "ADD", pod, conf, "");
    if !add.reach(at) {
        add.finish().ok();
        return None;
    }
    let mut conf_gc = conf.clone();
    conf_gc["cni.dev/valid-attachments"] = serde_json::json!([]);
    let mut call = node.call("GC", "", &conf_gc);
    (call.ifname, call.netns) = (String::new(), None);
    let (mut collector, start) = (call.spawn(), Instant::now());
    // It may wait for the lock of the leases, which the ADD holds.
    while start.elapsed() < Duration::from_millis(300) && collector.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let ended = collector.try_wait().unwrap().is_some();
    let answer = add.finish();
    finish(collector).ok();
    Some((answer, ended))
}
