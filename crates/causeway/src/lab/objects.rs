//! `causeway lab apply`, `get` and `delete`: objects of the API, without kubectl.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use causeway_lab::{Kind, documents, get_table};

use super::Which;
use crate::words::{columns, say, say_json};

/// A manifest.
#[derive(Debug, clap::Args)]
pub(crate) struct Manifest {
    #[command(flatten)]
    which: Which,
    /// A YAML or JSON file; `-` for standard input.
    #[arg(short, long)]
    filename: PathBuf,
    /// Where objects go that name no namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Wide,
    Json,
}

/// What to show.
#[derive(Debug, clap::Args)]
pub(crate) struct Get {
    #[command(flatten)]
    which: Which,
    /// The type, such as pods, po or networkpolicies.
    kind: String,
    /// One object; all unless given.
    object: Option<String>,
    /// The namespace; for lists `default` unless given.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Those of all namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// More columns, or everything as JSON.
    #[arg(short, long, value_enum)]
    output: Option<Output>,
}

/// What to delete.
#[derive(Debug, clap::Args)]
pub(crate) struct Delete {
    #[command(flatten)]
    which: Which,
    /// The type and the name of an object.
    #[arg(num_args = 0..=2, value_names = ["TYPE", "NAME"])]
    object: Vec<String>,
    /// The objects of a manifest; `-` for standard input.
    #[arg(short, long, conflicts_with = "object")]
    filename: Option<PathBuf>,
    /// The namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
}

fn read(path: &Path) -> Result<Vec<serde_json::Value>> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).context("standard input")?;
    } else {
        text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    }
    documents(&text).with_context(|| path.display().to_string())
}

pub(crate) fn apply(args: &Manifest) -> Result<()> {
    let lines =
        causeway_lab::apply(&args.which.client()?, &read(&args.filename)?, &args.namespace)?;
    say(&(lines.join("\n") + "\n"))
}

pub(crate) fn get(args: &Get) -> Result<()> {
    let client = args.which.client()?;
    let kind = Kind::find(&client, &args.kind)?;
    let namespace = if args.all_namespaces { "" } else { &args.namespace };
    let name = args.object.as_deref().unwrap_or("");
    if args.output == Some(Output::Json) {
        return say_json(&kind.read(&client, namespace, name)?);
    }
    let wide = args.output == Some(Output::Wide);
    say(&columns(&get_table(&client, &kind, namespace, name, wide)?))
}

pub(crate) fn delete(args: &Delete) -> Result<()> {
    let client = args.which.client()?;
    if let Some(path) = &args.filename {
        let lines = causeway_lab::delete(&client, &read(path)?, &args.namespace)?;
        return say(&(lines.join("\n") + "\n"));
    }
    let [kind, name] = args.object.as_slice() else {
        bail!("what is to be deleted? give TYPE and NAME, or -f FILE")
    };
    Kind::find(&client, kind)?.remove(&client, &args.namespace, name)?;
    say(&format!("{kind}/{name} deleted\n"))
}
