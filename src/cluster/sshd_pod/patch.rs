//! What the user changes about the pod (`--pod-patch FILE`): tolerations, a node selector, pull secrets, labels,
//! resources, a sidecar. Pure but for reading the file.
//!
//! It is a strategic merge patch (k8s.io/apimachinery `pkg/util/strategicpatch`): objects are merged, `null` removes,
//! lists are replaced, except for those that Kubernetes itself merges by a key ([`MERGED_BY`]). Directives (`$patch` and
//! its like) are refused rather than half understood. What the server in the pod depends on cannot be changed.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value};

use super::manifest::CONTAINER;

/// The lists of a Pod that are merged, and the field that names an entry: `patchMergeKey` in k8s.io/api
/// `core/v1/types.go`. All others are replaced, as `tolerations` are.
const MERGED_BY: &[(&str, &str)] = &[
    ("containers", "name"),
    ("initContainers", "name"),
    ("env", "name"),
    ("volumes", "name"),
    ("volumeMounts", "mountPath"),
    ("volumeDevices", "devicePath"),
    ("ports", "containerPort"),
    ("imagePullSecrets", "name"),
    ("hostAliases", "ip"),
    ("topologySpreadConstraints", "topologyKey"),
    ("schedulingGates", "name"),
    ("resourceClaims", "name"),
];

/// What finds the pod again, what makes it end, and what its loopback belongs to.
const KEPT: &[&str] = &[
    "/apiVersion",
    "/kind",
    "/metadata/name",
    "/metadata/namespace",
    "/metadata/generateName",
    "/metadata/labels/app.kubernetes.io~1name",
    "/metadata/labels/app.kubernetes.io~1component",
    "/metadata/annotations/kshuttle.dev~1owner",
    "/metadata/annotations/kshuttle.dev~1session",
    "/spec/hostNetwork",
    "/spec/restartPolicy",
];

/// The same within the server's container. Its image has a flag of its own.
const KEPT_OF_CONTAINER: &[&str] = &["/command", "/args", "/image", "/imagePullPolicy"];

/// A file larger than this is not one that somebody wrote.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A patch, read and found to be an object.
#[derive(Debug, Clone, PartialEq)]
pub struct PodPatch {
    patch: Value,
    /// For messages.
    file: PathBuf,
}

/// Why a patch cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// The file cannot be read.
    #[error("cannot read the pod's patch {}", .file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is larger than 1 MiB.
    #[error("the pod's patch {} is larger than 1 MiB", .0.display())]
    Large(PathBuf),
    /// Neither YAML nor JSON, or not an object.
    #[error("the pod's patch {} is not a YAML or JSON object", .file.display())]
    Syntax {
        /// Which.
        file: PathBuf,
        /// Where and why, if it could not be parsed.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// `$patch` and its like.
    #[error("the pod's patch {} has a directive, `{directive}`; only plain values are understood", .file.display())]
    Directive {
        /// Which file.
        file: PathBuf,
        /// The key.
        directive: String,
    },
    /// An entry of a merged list without the field that names it.
    #[error("the pod's patch {} has an entry in `{list}` without `{key}`, by which entries are merged", .file.display())]
    Unnamed {
        /// Which file.
        file: PathBuf,
        /// The list.
        list: String,
        /// The field.
        key: &'static str,
    },
    /// It makes something that is no Pod.
    #[error("the pod's patch {} makes something that is no Pod", .file.display())]
    NoPod {
        /// Which file.
        file: PathBuf,
        /// Which field and why.
        source: serde_json::Error,
    },
    /// A field that this version does not know, perhaps misspelt.
    #[error("the pod's patch {} sets `{field}`, which is no field of a Pod", .file.display())]
    Unknown {
        /// Which file.
        file: PathBuf,
        /// The path of the field, with dots.
        field: String,
    },
    /// It changes what the server depends on.
    #[error("the pod's patch {} changes `{field}`, on which kshuttle depends", .file.display())]
    Kept {
        /// Which file.
        file: PathBuf,
        /// The path of the field, with dots.
        field: String,
    },
}

impl PodPatch {
    /// Reads YAML or JSON.
    ///
    /// # Errors
    /// When the file cannot be read or is no object.
    pub fn read(file: &Path) -> Result<Self, PatchError> {
        let failed = |source| PatchError::Read { file: file.to_owned(), source };
        // Enough to tell a mistake; a pipe has no length.
        let mut text = String::new();
        let input = std::fs::File::open(file).map_err(failed)?;
        std::io::Read::read_to_string(&mut std::io::Read::take(input, FILE_BYTES_MAX + 1), &mut text)
            .map_err(failed)?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(PatchError::Large(file.to_owned()));
        }
        Self::parse(&text, file)
    }

    fn parse(text: &str, file: &Path) -> Result<Self, PatchError> {
        let no_object = |source| PatchError::Syntax { file: file.to_owned(), source };
        let patch: Value = serde_saphyr::from_str(text).map_err(|error| no_object(Some(Box::new(error))))?;
        if !patch.is_object() {
            return Err(no_object(None));
        }
        if let Some(directive) = directive(&patch) {
            return Err(PatchError::Directive { file: file.to_owned(), directive });
        }
        Ok(Self { patch, file: file.to_owned() })
    }

    /// The pod as the patch has it.
    ///
    /// # Errors
    /// When that is no pod, or none that kshuttle could use.
    pub(super) fn apply(&self, pod: &Pod) -> Result<Pod, PatchError> {
        let before = value(pod);
        let mut after = before.clone();
        merge(&mut after, &self.patch).map_err(|(list, key)| PatchError::Unnamed {
            file: self.file.clone(),
            list,
            key,
        })?;
        if let Some(field) = changed(&before, &after) {
            return Err(PatchError::Kept { file: self.file.clone(), field });
        }
        let patched: Pod = serde_json::from_value(after.clone())
            .map_err(|source| PatchError::NoPod { file: self.file.clone(), source })?;
        if let Some(field) = lost(&after, &value(&patched)) {
            return Err(PatchError::Unknown { file: self.file.clone(), field });
        }
        Ok(patched)
    }
}

fn value(pod: &Pod) -> Value {
    serde_json::to_value(pod).expect("a Pod has only string keys")
}

/// The first key that starts with `$`.
fn directive(value: &Value) -> Option<String> {
    match value {
        Value::Object(map) => map
            .iter()
            .find_map(|(key, value)| if key.starts_with('$') { Some(key.clone()) } else { directive(value) }),
        Value::Array(items) => items.iter().find_map(directive),
        _ => None,
    }
}

/// Merges `patch` into `target`; the name and key of a list with an entry that has no name.
fn merge(target: &mut Value, patch: &Value) -> Result<(), (String, &'static str)> {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return Ok(());
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { unreachable!("made above") };
    for (name, new) in patch {
        let key = MERGED_BY.iter().find(|(list, _)| list == name).map(|(_, key)| *key);
        match (new, key) {
            (Value::Null, _) => drop(target.remove(name)),
            (Value::Array(new), Some(key)) => {
                let old = target.entry(name).or_insert_with(|| Value::Array(Vec::new()));
                merge_list(old, new, key).ok_or_else(|| (name.clone(), key))??;
            }
            _ => merge(target.entry(name).or_insert(Value::Null), new)?,
        }
    }
    Ok(())
}

/// None when an entry has no name.
fn merge_list(old: &mut Value, new: &[Value], key: &str) -> Option<Result<(), (String, &'static str)>> {
    if !old.is_array() {
        *old = Value::Array(Vec::new());
    }
    let Value::Array(old) = old else { unreachable!("made above") };
    for entry in new {
        let name = entry.get(key)?;
        let place = match old.iter().position(|old| old.get(key) == Some(name)) {
            Some(place) => place,
            None => {
                old.push(Value::Null);
                old.len() - 1
            }
        };
        if let Err(unnamed) = merge(&mut old[place], entry) {
            return Some(Err(unnamed));
        }
    }
    Some(Ok(()))
}

/// The first field that must be as it was and is not.
fn changed(before: &Value, after: &Value) -> Option<String> {
    let differs = |before: Option<&Value>, after: Option<&Value>, path: &str| {
        (before.and_then(|value| value.pointer(path)) != after.and_then(|value| value.pointer(path)))
            .then(|| path[1..].replace('/', ".").replace("~1", "/"))
    };
    let of_pod = KEPT.iter().find_map(|path| differs(Some(before), Some(after), path));
    of_pod.or_else(|| {
        let (before, after) = (container(before), container(after));
        let within = |field: String| format!("spec.containers[{CONTAINER}].{field}");
        let of_container = KEPT_OF_CONTAINER.iter().find_map(|path| differs(before, after, path));
        of_container.or_else(|| (variables(before) != variables(after)).then(|| "env".to_owned())).map(within)
    })
}

fn container(pod: &Value) -> Option<&Value> {
    let mut containers = pod.pointer("/spec/containers")?.as_array()?.iter();
    containers.find(|container| container.get("name").is_some_and(|name| name == CONTAINER))
}

/// The settings of the server. `KSHUTTLE_LOG` is the user's.
fn variables(container: Option<&Value>) -> Vec<&Value> {
    let all = container.and_then(|container| container.get("env")?.as_array()).into_iter().flatten();
    let ours = |variable: &&Value| {
        let name = variable.get("name").and_then(Value::as_str).unwrap_or_default();
        name.starts_with("KSHUTTLE_") && name != "KSHUTTLE_LOG"
    };
    all.filter(ours).collect()
}

/// The first field of `before` that is not in `after`: reading a Pod drops what it does not know.
fn lost(before: &Value, after: &Value) -> Option<String> {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => before.iter().find_map(|(name, value)| {
            let below = match after.get(name) {
                Some(kept) => lost(value, kept)?,
                None if value.is_null() => return None,
                None => String::new(),
            };
            Some(if below.is_empty() || below.starts_with('[') {
                format!("{name}{below}")
            } else {
                format!("{name}.{below}")
            })
        }),
        (Value::Array(before), Value::Array(after)) => {
            before.iter().zip(after).enumerate().find_map(|(number, (before, after))| {
                let below = lost(before, after)?;
                Some(format!("[{number}].{below}"))
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
