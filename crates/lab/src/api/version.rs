//! Which Kubernetes the lab's API plays: what an agent or kubectl can tell versions apart by.
//!
//! What a version serves follows from the defaults of its feature gates, in
//! `staging/src/k8s.io/apiserver/pkg/features/kube_features.go` and
//! `pkg/features/kube_features.go` of Kubernetes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A version of Kubernetes, `1.28` to `1.37`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KubernetesVersion(u8);

/// A text that is no version that the lab can play.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Kubernetes version {0:?}: use 1.28 to 1.37, such as 1.28")]
pub struct BadVersion(String);

impl KubernetesVersion {
    /// The oldest.
    pub const OLDEST: Self = Self(28);
    /// The newest.
    pub const NEWEST: Self = Self(37);

    /// Whether a watch may ask for a list as a stream (`sendInitialEvents`): feature gate WatchList,
    /// alpha from 1.27, on in 1.32, off again in 1.33, on since 1.34.
    pub(crate) fn streams_lists(self) -> bool {
        self.0 == 32 || self.0 >= 34
    }

    /// The versions of `apidiscovery.k8s.io` in which aggregated discovery can be asked for:
    /// `v2beta1` from 1.26 (gate AggregatedDiscoveryEndpoint, on since 1.27) until 1.32 (gate
    /// AggregatedDiscoveryRemoveBetaType, on since 1.33), `v2` from 1.30.
    pub(crate) fn discovers_by(self, version: &str) -> bool {
        match version {
            "v2beta1" => self.0 <= 32,
            "v2" => self.0 >= 30,
            _ => false,
        }
    }

    /// `v1.28.0`: how `/version` and a kubelet tell it.
    pub fn release(self) -> String {
        format!("v{self}.0")
    }
}

impl Default for KubernetesVersion {
    fn default() -> Self {
        Self::NEWEST
    }
}

impl fmt::Display for KubernetesVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1.{}", self.0)
    }
}

impl FromStr for KubernetesVersion {
    type Err = BadVersion;

    fn from_str(text: &str) -> Result<Self, BadVersion> {
        let minor = text.strip_prefix("1.").filter(|minor| minor.len() == 2);
        let minor = minor.and_then(|minor| minor.parse().ok()).map(Self);
        let known = minor.filter(|v| (Self::OLDEST..=Self::NEWEST).contains(v));
        known.ok_or_else(|| BadVersion(text.to_owned()))
    }
}

impl TryFrom<String> for KubernetesVersion {
    type Error = BadVersion;

    fn try_from(text: String) -> Result<Self, BadVersion> {
        text.parse()
    }
}

impl From<KubernetesVersion> for String {
    fn from(version: KubernetesVersion) -> String {
        version.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_those_that_are_supported() {
        for minor in 28..=37 {
            let text = format!("1.{minor}");
            let version: KubernetesVersion = text.parse().unwrap();
            assert_eq!(
                (version.to_string(), version.release()),
                (text.clone(), format!("v{text}.0"))
            );
            assert_eq!(serde_json::to_value(version).unwrap(), text);
        }
        for bad in ["1.27", "1.38", "1.3", "1.030", "2.28", "28", "", "1.28.1", "1.+9"] {
            let error = bad.parse::<KubernetesVersion>().unwrap_err();
            assert!(error.to_string().contains("1.28 to 1.37"), "{error}");
        }
        assert_eq!(KubernetesVersion::default(), KubernetesVersion::NEWEST);
    }

    #[test]
    fn gates_are_those_of_the_releases() {
        let all = |test: fn(KubernetesVersion) -> bool| -> Vec<u8> {
            (28..=37).filter(|minor| test(KubernetesVersion(*minor))).collect()
        };
        assert_eq!(all(KubernetesVersion::streams_lists), [32, 34, 35, 36, 37]);
        assert_eq!(all(|v| v.discovers_by("v2beta1")), [28, 29, 30, 31, 32]);
        assert_eq!(all(|v| v.discovers_by("v2")), (30..=37).collect::<Vec<_>>());
        assert!(all(|v| v.discovers_by("v3")).is_empty());
    }
}
