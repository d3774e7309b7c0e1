//! The commands, run over a list's plugins in the order that the specification sets.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::attachment::Attachment;
use super::build::{self, Extra};
use super::cache::{Cache, CachedAttachment};
use super::list::{NetworkList, PluginConf};
use crate::conf::AttachmentId;
use crate::env::Command;
use crate::error::{CniError, code};
use crate::exec::{Exec, judge};
use crate::json::{Object, object_from_slice};
use crate::result::CniResult;
use crate::version::Version;

/// A runtime: how to run plugins, where they are, and where results are remembered. All calls
/// block until the plugins have ended.
#[derive(Clone, Debug)]
pub struct Runtime<E> {
    /// How plugins are run.
    pub exec: E,
    /// `CNI_PATH`.
    pub path: Vec<PathBuf>,
    /// Cached results.
    pub cache: Cache,
    /// `PATH` for the plugins.
    pub search_path: Option<String>,
}

impl<E: Exec> Runtime<E> {
    /// A runtime that passes on the `PATH` of this process.
    pub fn new(exec: E, path: Vec<PathBuf>, cache_dir: impl Into<PathBuf>) -> Self {
        let cache = Cache::new(cache_dir);
        Self { exec, path, cache, search_path: std::env::var("PATH").ok() }
    }

    /// ADD through the chain, in order, each plugin given the result of the one before. The last
    /// result is cached and returned. If a plugin fails, DEL is run for the whole list, as the
    /// specification advises, so that nothing stays behind.
    ///
    /// # Errors
    /// Code 7 for an attachment that was added and not deleted; else the plugin's error, and where
    /// undoing failed too, the details say so.
    pub fn add(&self, list: &NetworkList, attachment: &Attachment) -> Result<CniResult, CniError> {
        attachment.validate()?;
        // A second ADD would fail in the plugins, and undoing it would take the first one down.
        if let Ok(Some(_)) = self.cache.load(&list.name, attachment) {
            return Err(CniError::invalid_config(format!(
                "container \"{}\" interface \"{}\" is attached to network \"{}\" already: delete that attachment first",
                attachment.container_id, attachment.ifname, list.name
            )));
        }
        let mut last = None;
        self.add_chain(list, attachment, &mut last).map_err(|mut error| {
            let left = self.undo(list, attachment, last.as_ref());
            for failed in left {
                if !error.details.is_empty() {
                    error.details.push_str("; ");
                }
                error.details.push_str(&format!("undoing: {}", failed.msg));
            }
            error
        })
    }

    fn add_chain(
        &self,
        list: &NetworkList,
        attachment: &Attachment,
        last: &mut Option<Value>,
    ) -> Result<CniResult, CniError> {
        let mut result = CniResult::default();
        for plugin in &list.plugins {
            let stdout =
                self.run_one(list, plugin, Command::Add, Some(attachment), last.as_ref(), None)?;
            result = CniResult::from_slice(&stdout, list.cni_version)
                .map_err(|e| e.context(format!("plugin \"{}\"", plugin.plugin_type)))?;
            // Said again in the list's version, whatever the plugin chose to answer in.
            *last = Some(result.to_value(list.cni_version)?);
        }
        let value = last.as_ref().unwrap_or(&Value::Null);
        self.cache.store(&list.name, attachment, &list.source, value)?;
        Ok(result)
    }

    /// DEL for all plugins in reverse, going on after failures, whose errors are returned.
    fn undo(
        &self,
        list: &NetworkList,
        attachment: &Attachment,
        prev: Option<&Value>,
    ) -> Vec<CniError> {
        let run = |plugin| self.run_one(list, plugin, Command::Del, Some(attachment), prev, None);
        list.plugins.iter().rev().filter_map(|plugin| run(plugin).err()).collect()
    }

    /// DEL through the chain in reverse, with the cached result, which is forgotten at the end.
    /// What was never added, or is gone, is no error.
    ///
    /// # Errors
    /// The first plugin's that fails; the cached result then stays for the next attempt. A cached
    /// result that cannot be read does not stand in the way: the plugins are called without.
    pub fn del(&self, list: &NetworkList, attachment: &Attachment) -> Result<(), CniError> {
        attachment.validate()?;
        let prev = self.cached_result(list, attachment).unwrap_or_default();
        for plugin in list.plugins.iter().rev() {
            self.run_one(list, plugin, Command::Del, Some(attachment), prev.as_ref(), None)?;
        }
        self.cache.remove(&list.name, attachment)
    }

    /// CHECK through the chain, in order, with the cached result. Nothing is done where the list
    /// has `disableCheck`.
    ///
    /// # Errors
    /// Code 1 below 0.4.0, code 3 if no result is cached, else the first plugin's that fails.
    pub fn check(&self, list: &NetworkList, attachment: &Attachment) -> Result<(), CniError> {
        attachment.validate()?;
        if list.cni_version < Command::Check.since() {
            return Err(CniError::incompatible_version(format!(
                "network \"{}\" speaks CNI version {}, and CHECK exists since {}",
                list.name,
                list.cni_version,
                Command::Check.since()
            )));
        }
        if list.disable_check {
            return Ok(());
        }
        let prev = self.cached_result(list, attachment)?.ok_or_else(|| {
            CniError::unknown_container(format!(
                "no cached result for container \"{}\" interface \"{}\" in network \"{}\": was it added?",
                attachment.container_id, attachment.ifname, list.name
            ))
        })?;
        for plugin in &list.plugins {
            self.run_one(list, plugin, Command::Check, Some(attachment), Some(&prev), None)?;
        }
        Ok(())
    }

    /// STATUS of every plugin. Below 1.1.0 there is no such command, and all is taken to be well.
    ///
    /// # Errors
    /// The first plugin's that fails, usually with code 50 or 51.
    pub fn status(&self, list: &NetworkList) -> Result<(), CniError> {
        if list.cni_version < Command::Status.since() {
            return Ok(());
        }
        for plugin in &list.plugins {
            self.run_one(list, plugin, Command::Status, None, None, None)?;
        }
        Ok(())
    }

    /// Cleans up after all attachments but the valid ones: DEL for those that are cached, then,
    /// from 1.1.0, GC for every plugin. Nothing is done where the list has `disableGC`.
    ///
    /// # Errors
    /// All failures in one error, with the code of the first; every step is tried.
    pub fn gc(&self, list: &NetworkList, valid: &[AttachmentId]) -> Result<(), CniError> {
        if list.disable_gc {
            return Ok(());
        }
        let mut errors = Vec::new();
        for cached in self.cache.list(&list.name)? {
            if !valid.contains(&cached.attachment.id()) {
                errors.extend(self.del(list, &cached.attachment).err());
            }
        }
        if list.cni_version >= Command::Gc.since() {
            for plugin in &list.plugins {
                errors
                    .extend(self.run_one(list, plugin, Command::Gc, None, None, Some(valid)).err());
            }
        }
        join(errors)
    }

    /// The versions that a plugin supports, oldest first; those unknown here are left out.
    ///
    /// # Errors
    /// As for running it; code 6 if its answer cannot be read.
    pub fn versions(&self, plugin_type: &str) -> Result<Vec<Version>, CniError> {
        let stdin = json!({"cniVersion": Version::NEWEST.as_str()}).to_string();
        let env = build::environment(Command::Version, None, &self.path, self.search_path());
        let stdout = match self.execute(plugin_type, &env, stdin.as_bytes()) {
            Ok(stdout) => stdout,
            // Plugins from before 0.2.0 do not know the command.
            Err(e) if e.code != code::IO_FAILURE && e.msg.contains("unknown CNI_COMMAND") => {
                return Ok(vec![Version::V0_1_0]);
            }
            Err(e) => return Err(e),
        };
        let what = format!("the answer of plugin \"{plugin_type}\" to VERSION");
        let object = object_from_slice(&stdout, &what)?;
        let listed: Vec<String> = crate::json::decode_key(&object, "supportedVersions")?;
        let mut versions: Vec<Version> = listed.iter().filter_map(|v| v.parse().ok()).collect();
        versions.sort();
        Ok(versions)
    }

    /// Could the list be run: is every plugin there, and does it speak the list's version?
    ///
    /// # Errors
    /// Code 7 or 1, naming the plugin.
    pub fn validate(&self, list: &NetworkList) -> Result<(), CniError> {
        for plugin in &list.plugins {
            let versions = self.versions(&plugin.plugin_type)?;
            if !versions.contains(&list.cni_version) {
                let known = versions.iter().map(|v| v.as_str()).collect::<Vec<_>>().join(", ");
                return Err(CniError::incompatible_version(format!(
                    "plugin \"{}\" does not support CNI version {} of network \"{}\" (it supports {known})",
                    plugin.plugin_type, list.cni_version, list.name
                )));
            }
        }
        Ok(())
    }

    /// The attachments of a network that were added and not deleted.
    ///
    /// # Errors
    /// As [`Cache::list`].
    pub fn attachments(&self, list: &NetworkList) -> Result<Vec<CachedAttachment>, CniError> {
        self.cache.list(&list.name)
    }

    /// The cached result in the list's present version.
    fn cached_result(
        &self,
        list: &NetworkList,
        attachment: &Attachment,
    ) -> Result<Option<Value>, CniError> {
        let Some(cached) = self.cache.load(&list.name, attachment)? else { return Ok(None) };
        let convert = |object: &Object| {
            CniResult::from_object(object, list.cni_version, "result")?.to_value(list.cni_version)
        };
        convert(&cached.result).map(Some)
    }

    fn run_one(
        &self,
        list: &NetworkList,
        plugin: &PluginConf,
        command: Command,
        attachment: Option<&Attachment>,
        prev_result: Option<&Value>,
        valid: Option<&[AttachmentId]>,
    ) -> Result<Vec<u8>, CniError> {
        let capability_args = attachment.map(|a| &a.capability_args);
        let extra = Extra { prev_result, capability_args, valid };
        let config = build::config(list, plugin, &extra);
        let env = build::environment(command, attachment, &self.path, self.search_path());
        self.execute(&plugin.plugin_type, &env, &config)
            .map_err(|e| e.context(format!("{command} in network \"{}\"", list.name)))
    }

    fn execute(
        &self,
        plugin_type: &str,
        env: &[(String, String)],
        stdin: &[u8],
    ) -> Result<Vec<u8>, CniError> {
        let binary = self.exec.find(plugin_type, &self.path)?;
        let output = self
            .exec
            .run(&binary, env, stdin)
            .map_err(|e| CniError::io(format!("cannot run plugin {}: {e}", binary.display())))?;
        judge(plugin_type, output)
    }

    fn search_path(&self) -> Option<&str> {
        self.search_path.as_deref()
    }
}

/// Several failures as one error, or none.
fn join(errors: Vec<CniError>) -> Result<(), CniError> {
    let mut errors = errors.into_iter();
    let Some(mut first) = errors.next() else { return Ok(()) };
    for other in errors {
        first.msg = format!("{}; {}", first.msg, other.msg);
    }
    Err(first)
}
