//! Whole plugin processes: start to exit of ADD and of DEL.
//!
//! Each contender has a node of its own (a network namespace), so that one's rules and ports do
//! not slow another; pods' namespaces are made beforehand. Contenders take turns pod by pod.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use causeway_kernel::netns::{self, NetNs};
use serde_json::{Value, json};

use crate::Args;
use crate::report::{Series, publish};

/// Somebody whose ADD and DEL are timed.
struct Contender {
    name: &'static str,
    node: PathBuf,
    conf: Option<Value>,
    bin: PathBuf,
    cni_path: PathBuf,
}

/// Runs the benchmark.
///
/// # Errors
/// When a namespace cannot be made or any ADD or DEL fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    let pods = args.count.unwrap_or(200);
    // Leases and records of this run live in a mount namespace of its own and end with it.
    netns::unshare_for_test().map_err(|e| anyhow!("{e}"))?;
    let own_bins = tempdir("cw-bench-bin")?;
    for name in ["bridge", "host-local", "loopback", "causeway"] {
        std::os::unix::fs::symlink(args.bin.join("causeway-cni"), own_bins.join(name))?;
    }
    let mut all = contenders(args, &own_bins)?;
    let mut notes = vec![format!("whole processes, {pods} pods, pods' namespaces made beforehand")];
    if !args.reference.join("bridge").exists() {
        notes.push(format!("no reference plugins in {}", args.reference.display()));
        all.retain(|c| !c.name.starts_with("reference"));
    } else {
        notes.push(format!("reference: {}", about(&args.reference.join("bridge"))));
    }
    let mut series = Vec::new();
    for contender in &all {
        make_node(contender)?;
        for op in ["ADD", "DEL"] {
            let against = (contender.name != "floor").then(|| format!("{op} floor"));
            series.push(Series::new(format!("{op} {}", contender.name), "ms", against.as_deref()));
        }
    }
    let namespaces: Vec<Vec<PathBuf>> = (0..all.len())
        .map(|c| (0..pods).map(|p| make_ns(&format!("cw-bench-{c}-{p}"))).collect())
        .collect::<Result<_>>()?;
    for (step, op) in ["ADD", "DEL"].iter().enumerate() {
        for pod in 0..pods {
            for (c, (contender, own)) in all.iter().zip(&namespaces).enumerate() {
                let time = contender.call(op, pod, &own[pod])?;
                series[2 * c + step].samples.push(time);
            }
        }
    }
    // Beside the ratio to the floor, ours to the reference.
    for (ours, theirs) in
        [("ADD ours bridge", "ADD reference bridge"), ("DEL ours bridge", "DEL reference bridge")]
    {
        let find = |name: &str| series.iter().find(|s| s.name == name).cloned();
        if let (Some(mut a), Some(b)) = (find(ours), find(theirs)) {
            a.name = format!("{ours} / reference");
            a.against = Some(b.name);
            series.push(a);
        }
    }
    publish("cni", &notes, &series, &args.results)
}

fn contenders(args: &Args, own_bins: &Path) -> Result<Vec<Contender>> {
    let conf = |masq: bool, dir: &str| {
        json!({"cniVersion": "0.3.1", "name": "pod-network", "type": "bridge", "bridge": "cni0",
            "isGateway": true, "ipMasq": masq,
            "ipam": {"type": "host-local", "subnet": "10.244.0.0/16", "dataDir": dir,
                "routes": [{"dst": "0.0.0.0/0"}]}})
    };
    let leases = tempdir("cw-bench-leases")?;
    let dir = |name: &str| leases.join(name).to_string_lossy().into_owned();
    let contender =
        |name: &'static str, conf, bin: PathBuf, cni_path: &Path| -> Result<Contender> {
            let node = make_ns(&format!("cw-bench-{}", name.replace(' ', "-")))?;
            Ok(Contender { name, node, conf, bin, cni_path: cni_path.to_owned() })
        };
    let this = std::env::current_exe()?;
    let reference = args.reference.join("bridge");
    let ours = own_bins.join("bridge");
    Ok(vec![
        contender("floor", None, this, own_bins)?,
        contender("ours bridge", Some(conf(true, &dir("om"))), ours.clone(), own_bins)?,
        contender(
            "reference bridge",
            Some(conf(true, &dir("rm"))),
            reference.clone(),
            &args.reference,
        )?,
        contender("ours no masquerade", Some(conf(false, &dir("on"))), ours, own_bins)?,
        contender(
            "reference no masquerade",
            Some(conf(false, &dir("rn"))),
            reference,
            &args.reference,
        )?,
    ])
}

impl Contender {
    /// Milliseconds from the start of the process to its end.
    fn call(&self, op: &str, pod: usize, netns: &Path) -> Result<f64> {
        let mut command = Command::new(&self.bin);
        let netns = netns.to_string_lossy().into_owned();
        let input = match &self.conf {
            Some(conf) => {
                command
                    .env_clear()
                    .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
                    .env("CNI_COMMAND", op)
                    .env("CNI_CONTAINERID", format!("bench-{pod}"))
                    .env("CNI_NETNS", &netns)
                    .env("CNI_IFNAME", "eth0")
                    .env("CNI_PATH", &self.cni_path);
                conf.to_string()
            }
            None => {
                let host = format!("cwb{pod}");
                let addr = format!("10.244.{}.{}/16", 1 + pod / 250, 1 + pod % 250);
                command.arg("floor");
                match op {
                    "ADD" => command.args(["add", &netns, &host, "cni0", &addr, "10.244.0.1"]),
                    _ => command.args(["del", &host]),
                };
                String::new()
            }
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let node = NetNs::open(&self.node).map_err(|e| anyhow!("{e}"))?;
        let (time, output) = node
            .run(move || -> Result<_> {
                let start = Instant::now();
                let mut child = command.spawn()?;
                child.stdin.take().context("no stdin")?.write_all(input.as_bytes())?;
                let output = child.wait_with_output()?;
                Ok((start.elapsed(), output))
            })
            .map_err(|e| anyhow!("{e}"))??;
        if !output.status.success() {
            let text = [output.stdout, output.stderr].concat();
            bail!("{} {op} of pod {pod}: {}", self.name, String::from_utf8_lossy(&text));
        }
        Ok(time.as_secs_f64() * 1e3)
    }
}

fn make_node(contender: &Contender) -> Result<()> {
    if contender.name == "floor" {
        let node = NetNs::open(&contender.node).map_err(|e| anyhow!("{e}"))?;
        let mut handle = causeway_kernel::Handle::open_in(&node).map_err(|e| anyhow!("{e}"))?;
        let name = causeway_types::IfName::new("cni0")?;
        let bridge = causeway_model::Link::up(name, causeway_model::LinkKind::Bridge);
        let op = causeway_plan::Op::Create(causeway_model::Object::Link(bridge));
        for result in handle.apply(&[op]) {
            result.map_err(|e| anyhow!("{e}"))?;
        }
    }
    Ok(())
}

fn make_ns(name: &str) -> Result<PathBuf> {
    let path = PathBuf::from("/run/netns").join(name);
    netns::create_named(&path).map_err(|e| anyhow!("{e}"))?;
    Ok(path)
}

fn tempdir(name: &str) -> Result<PathBuf> {
    // On the private /run/netns tmpfs, which ends with this process.
    let path = PathBuf::from("/run/netns").join(format!(".{name}"));
    std::fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// The about line of a plugin, and the version of the package that it comes from where the system
/// knows: Debian's build does not print one.
fn about(plugin: &Path) -> String {
    let output = Command::new(plugin).env_clear().output();
    let text = output.map(|o| [o.stdout, o.stderr].concat()).unwrap_or_default();
    let line =
        String::from_utf8_lossy(&text).lines().next().unwrap_or("version unknown").to_owned();
    let package = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${Version}", "containernetworking-plugins"])
        .output();
    match package {
        Ok(out) if out.status.success() => {
            format!("{line}, {}", String::from_utf8_lossy(&out.stdout))
        }
        _ => line,
    }
}
