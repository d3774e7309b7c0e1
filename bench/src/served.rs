//! ADD and DEL of a network that an agent serves: on a node of a lab, with a real agent.
//!
//! The part that is timed runs on the node, as a process of this program there; a bare DEL of the
//! kernel takes turns with that of the plugin.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::Args;
use crate::cni::{make_ns, measured, pause};
use crate::report::Series;

/// Between two removals: a node that loses a pod loses the next one a moment later, and the agent is
/// to have come to its end with the one before.
const PAUSE: Duration = Duration::from_millis(50);
/// How long the agent may take to end the last removals.
const LAST: Duration = Duration::from_secs(10);
const LAB: &str = "cwbench";

/// Ends the lab, also after a failure.
struct Lab<'a>(&'a Path);

impl Drop for Lab<'_> {
    fn drop(&mut self) {
        let _ = Command::new(self.0).args(["lab", "down", "--name", LAB]).output();
    }
}

/// Both ways of attachment, one after the other.
///
/// # Errors
/// When a lab cannot be made, or any ADD or DEL fails.
pub(crate) fn run(args: &Args, pods: usize) -> Result<Vec<Series>> {
    let program = args.bin.join("causeway");
    let mut all = Vec::new();
    for (attach, plugin) in [("routed", "causeway"), ("bridge", "bridge")] {
        let lab = Lab(&program);
        output(Command::new(&program).args([
            "lab", "up", "--name", LAB, "--nodes", "1", "--attach", attach, "--plugin", plugin,
        ]))?;
        let text = output(
            Command::new(&program)
                .args(["lab", "shell", "--name", LAB, "node-1", "--"])
                .arg(std::env::current_exe()?)
                .args(["served", &pods.to_string()])
                .arg(args.bin.join("causeway-cni")),
        )?;
        drop(lab);
        let times: Value = serde_json::from_str(text.lines().last().unwrap_or_default())
            .with_context(|| format!("what the node says: {text}"))?;
        let name = |what: &str| format!("{what} {attach}, agent");
        let floor = name("DEL floor");
        for (key, name, against) in [
            ("floor", floor.clone(), None),
            ("add", name("ADD ours"), None),
            ("del", name("DEL ours"), Some(floor.as_str())),
        ] {
            let mut series = Series::new(name, "ms", against);
            series.samples = serde_json::from_value(times[key].clone())?;
            all.push(series);
        }
    }
    Ok(all)
}

pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}

/// On the node: `served PODS PLUGIN`. Prints the times as JSON.
///
/// # Errors
/// As [`run`].
pub(crate) fn process(words: &[String]) -> Result<()> {
    let [pods, plugin] = words else { bail!("served PODS PLUGIN") };
    let pods: usize = pods.parse()?;
    let conf = configuration()?;
    // Called by its own name it acts as the type of the configuration says.
    let program = PathBuf::from(plugin);
    let dir = program.parent().unwrap_or(Path::new("/")).to_owned();
    let call = |op: &str, pod: usize, netns: &Path, conf: &Value| -> Result<(f64, Value)> {
        let mut command = Command::new(&program);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", op)
            .env("CNI_CONTAINERID", format!("bench-{pod}"))
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &dir);
        let (time, output) = measured(command, &conf.to_string())?;
        let result = if op == "ADD" { serde_json::from_slice(&output)? } else { Value::Null };
        Ok((time, result))
    };
    let (mut add, mut del, mut floor) = (Vec::new(), Vec::new(), Vec::new());
    let mut made = Vec::new();
    for pod in 0..pods {
        let (netns, other) = (make_ns(&format!("cwb{pod}"))?, make_ns(&format!("cwf{pod}"))?);
        let (time, result) = call("ADD", pod, &netns, &conf)?;
        add.push(time);
        let mut conf = conf.clone();
        conf["prevResult"] = result;
        bare(&[
            "link",
            "add",
            &format!("cwf{pod}"),
            "type",
            "veth",
            "peer",
            "eth0",
            "netns",
            &format!("cwf{pod}"),
        ])?;
        bare(&["link", "set", &format!("cwf{pod}"), "up"])?;
        made.push((netns, other, conf));
    }
    for (pod, (netns, _, conf)) in made.iter().enumerate() {
        pause(PAUSE);
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["floor", "del", &format!("cwf{pod}")]);
        floor.push(measured(command, "")?.0);
        pause(PAUSE);
        del.push(call("DEL", pod, netns, conf)?.0);
        let inside = ["-n", &format!("cwb{pod}"), "link", "show", "eth0"];
        if Command::new("ip").args(inside).output()?.status.success() {
            bail!("DEL has answered, and eth0 is still in pod {pod}");
        }
    }
    nothing_left(0)?;
    for (netns, other, _) in &made {
        for path in [netns, other] {
            let name = path.file_name().unwrap_or_default();
            output(Command::new("ip").args(["netns", "del"]).arg(name))?;
        }
    }
    println!("{}", json!({"add": add, "del": del, "floor": floor}));
    Ok(())
}

fn bare(words: &[&str]) -> Result<String> {
    output(Command::new("ip").args(words))
}

/// The first plugin of the list that the agent wrote, as a runtime hands it over.
pub(crate) fn configuration() -> Result<Value> {
    let path = Path::new("/etc/cni/net.d").join(causeway_types::names::CNI_CONFLIST);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let list: Value = serde_json::from_str(&text)?;
    let mut conf = list["plugins"][0].clone();
    conf["cniVersion"] = json!("1.0.0");
    conf["name"] = list["name"].clone();
    Ok(conf)
}

/// Records of attachments on this node.
pub(crate) fn records() -> Result<usize> {
    Ok(fs::read_dir(causeway_types::names::ATTACHMENTS_DIR)?.count())
}

/// The agent ends what DEL left to it: there are as many records as before.
pub(crate) fn nothing_left(before: usize) -> Result<()> {
    let start = Instant::now();
    let dir = causeway_types::names::ATTACHMENTS_DIR;
    while records()? > before {
        if start.elapsed() > LAST {
            bail!("records are left in {dir} {LAST:?} after the last DEL");
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}
