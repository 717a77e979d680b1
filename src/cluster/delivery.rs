//! Brings the pod's program into the namespace without an image: the server, packed, in immutable ConfigMaps
//! named by their content, and the loader that joins and executes it (`sshd-pod/loader`) in one more.
//!
//! All sessions and users of one version share these objects, so they are uploaded once per namespace. Server
//! parts that somebody exchanged are noticed by the loader, by their SHA-256 in the pod's command; the loader
//! itself is compared here byte for byte before a pod is made that runs it.
//!
//! Next: [`super::sshd_pod`] mounts what [`deliver`] returns.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use sha2::{Digest, Sha256};

use super::api_error::{ApiError, MissingRight, ask};
use super::client::Cluster;
use super::rights;

/// What one ConfigMap gets: the limit is 1 MiB for the whole object, and the request grows by a third as base64.
const PART_BYTES: usize = 900_000;
/// As the loader's own limit.
const PARTS_MAX: usize = 16;
/// The loader must fit into one ConfigMap.
const LOADER_BYTES_MAX: usize = PART_BYTES;
/// Where the content's SHA-256 stands, next to the 16 digits in the name.
const HASH_ANNOTATION: &str = "kshuttle.dev/sha256";
/// The file names beside the executable, when it carries nothing itself.
const SERVER_FILE: &str = "kshuttle-sshd.gz";
const LOADER_FILE: &str = "kshuttle-loader";
/// The loader's key in its ConfigMap, and its file name in the pod.
pub(super) const LOADER_KEY: &str = "loader";

/// What is brought: the server as a gzip file, and the loader as an executable.
#[derive(Clone)]
pub struct Payload {
    server: Cow<'static, [u8]>,
    loader: Cow<'static, [u8]>,
    architecture: &'static str,
}

/// What a pod needs to run the delivered server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// `(name, key)` of each ConfigMap, the loader's first. The key is also the file's name in the pod.
    pub config_maps: Vec<(String, String)>,
    /// SHA-256 of the joined server parts, in hexadecimal: what the loader must find.
    pub sha256: String,
    /// `kubernetes.io/arch` of the nodes that can run it.
    pub architecture: &'static str,
}

/// Why the program is not in the namespace.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// Neither in the executable nor beside it.
    #[error("the pod's program is not there: cannot read {} (made by `scripts/build`)", .path.display())]
    Missing {
        /// The file looked for.
        path: PathBuf,
        /// Why it cannot be read.
        source: io::Error,
    },
    /// The executable's own place is unknown.
    #[error("cannot find the folder of this executable, where the pod's program should be")]
    Executable(#[source] io::Error),
    /// The program is not what it should be.
    #[error("the pod's program cannot be used: {0}")]
    Unusable(&'static str),
    /// The API server does not take it.
    #[error("cannot store the pod's program in ConfigMap `{name}`")]
    Store {
        /// The ConfigMap's name.
        name: String,
        /// Why.
        source: ApiError,
    },
    /// There is a ConfigMap of that name with something else in it.
    #[error("ConfigMap `{name}` in namespace `{namespace}` is not what kshuttle put there; delete it")]
    Altered {
        /// The ConfigMap's name.
        name: String,
        /// Where it is.
        namespace: String,
    },
}

impl DeliveryError {
    /// The missing right, if that is what it is.
    pub fn missing_right(&self) -> Option<&MissingRight> {
        match self {
            Self::Store { source, .. } => source.missing_right(),
            _ => None,
        }
    }

    /// Role and RoleBinding to ask for in `namespace`, if a right is missing.
    pub fn role_yaml(&self, namespace: &str) -> Option<String> {
        self.missing_right().map(|right| rights::role_yaml(namespace, right.user.as_deref()))
    }
}

impl Payload {
    /// What this executable carries, or the two files beside it (`kshuttle-sshd.gz`, `kshuttle-loader`).
    ///
    /// # Errors
    /// When a file is missing or not what it should be.
    pub fn load() -> Result<Self, DeliveryError> {
        #[cfg(feature = "embed-server")]
        return Self::new(
            Cow::Borrowed(include_bytes!(env!("KSHUTTLE_SERVER_GZ"))),
            Cow::Borrowed(include_bytes!(env!("KSHUTTLE_LOADER"))),
        );
        #[cfg(not(feature = "embed-server"))]
        {
            let executable = std::env::current_exe().map_err(DeliveryError::Executable)?;
            Self::from_dir(executable.parent().unwrap_or(Path::new("/")))
        }
    }

    /// The two files in `dir`.
    ///
    /// # Errors
    /// When a file is missing or not what it should be.
    pub fn from_dir(dir: &Path) -> Result<Self, DeliveryError> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read(&path).map_err(|source| DeliveryError::Missing { path, source })
        };
        Self::new(Cow::Owned(read(SERVER_FILE)?), Cow::Owned(read(LOADER_FILE)?))
    }

    fn new(server: Cow<'static, [u8]>, loader: Cow<'static, [u8]>) -> Result<Self, DeliveryError> {
        if !server.starts_with(&[0x1f, 0x8b]) {
            return Err(DeliveryError::Unusable("the server is not a gzip file"));
        }
        if server.len() > PARTS_MAX * PART_BYTES {
            return Err(DeliveryError::Unusable("the server is larger than 14.4 MB packed"));
        }
        if loader.len() > LOADER_BYTES_MAX {
            return Err(DeliveryError::Unusable("the loader is larger than a ConfigMap holds"));
        }
        let architecture = architecture(&loader)
            .ok_or(DeliveryError::Unusable("the loader is not a Linux program for amd64 or arm64"))?;
        Ok(Self { server, loader, architecture })
    }

    /// `kubernetes.io/arch` of the nodes that can run it.
    pub fn architecture(&self) -> &'static str {
        self.architecture
    }

    /// SHA-256 of the server as it is brought, which is what the loader compares.
    pub(super) fn sha256(&self) -> String {
        hash(&self.server)
    }

    /// What a pod will need, known before anything is brought.
    pub(super) fn delivered(&self) -> Delivered {
        let objects = self.objects();
        Delivered {
            config_maps: objects.iter().map(|object| (name_of(object).to_owned(), key_of(object))).collect(),
            sha256: self.sha256(),
            architecture: self.architecture,
        }
    }

    /// The same as files with their names, the loader's first, and the SHA-256 of the joined others.
    pub(super) fn files(&self) -> (Vec<(String, &[u8])>, String) {
        let loader = std::iter::once((LOADER_KEY.to_owned(), &*self.loader));
        let parts = self.server.chunks(PART_BYTES).enumerate();
        let parts = parts.map(|(number, part)| (format!("server.{number}"), part));
        (loader.chain(parts).collect(), self.sha256())
    }

    /// The ConfigMaps, the loader's first.
    fn objects(&self) -> Vec<ConfigMap> {
        let mut objects = vec![object(
            format!("kshuttle-loader-{}", &hash(&self.loader)[..16]),
            LOADER_KEY.to_owned(),
            &self.loader,
        )];
        let whole = self.sha256();
        for (number, part) in self.server.chunks(PART_BYTES).enumerate() {
            let name = format!("kshuttle-server-{}-{number}", &whole[..16]);
            objects.push(object(name, format!("server.{number}"), part));
        }
        objects
    }
}

/// Makes sure that the program is in the cluster's namespace. `report` gets one sentence if something is uploaded.
///
/// # Errors
/// When the API server refuses or cannot be reached, or when the objects are there with other content.
pub async fn deliver(
    cluster: &Cluster,
    payload: &Payload,
    mut report: impl FnMut(&str),
) -> Result<Delivered, DeliveryError> {
    let api: Api<ConfigMap> = Api::namespaced(cluster.client().clone(), cluster.namespace());
    let objects = payload.objects();
    let mut told = false;
    for wanted in &objects {
        let name = name_of(wanted);
        let failed = |source| DeliveryError::Store { name: name.to_owned(), source };
        if is_there(&api, wanted).await.map_err(failed)? {
            continue;
        }
        if !std::mem::replace(&mut told, true) {
            let bytes = payload.server.len() + payload.loader.len();
            report(&format!("uploading the pod's program, {} kB, once per namespace", bytes.div_ceil(1000)));
        }
        match ask(api.create(&PostParams::default(), wanted)).await {
            // Somebody else was faster; theirs is compared below.
            Ok(_) | Err(ApiError::AlreadyExists(_)) => {}
            Err(source) => return Err(failed(source)),
        }
    }
    verify_loader(&api, &objects[0], cluster.namespace()).await?;
    Ok(payload.delivered())
}

/// Asks for the metadata only: the parts are large. One without our annotation counts as there, too, since it
/// cannot be made again; the loader finds out.
async fn is_there(api: &Api<ConfigMap>, wanted: &ConfigMap) -> Result<bool, ApiError> {
    Ok(ask(api.get_metadata_opt(name_of(wanted))).await?.is_some())
}

/// The loader decides what the pod runs and nothing checks it in the pod, so it is checked here. It is small.
async fn verify_loader(
    api: &Api<ConfigMap>,
    wanted: &ConfigMap,
    namespace: &str,
) -> Result<(), DeliveryError> {
    let name = name_of(wanted);
    let found =
        ask(api.get(name)).await.map_err(|source| DeliveryError::Store { name: name.to_owned(), source })?;
    let same = found.immutable == Some(true)
        && found.binary_data == wanted.binary_data
        && found.data.as_ref().is_none_or(BTreeMap::is_empty);
    if same {
        Ok(())
    } else {
        Err(DeliveryError::Altered { name: name.to_owned(), namespace: namespace.to_owned() })
    }
}

fn object(name: String, key: String, content: &[u8]) -> ConfigMap {
    let labels = [
        ("app.kubernetes.io/name", "kshuttle"),
        ("app.kubernetes.io/managed-by", "kshuttle"),
        ("app.kubernetes.io/component", "server"),
    ];
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name),
            labels: Some(labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
            annotations: Some([(HASH_ANNOTATION.to_owned(), hash(content))].into()),
            ..ObjectMeta::default()
        },
        // Nobody changes it under a running session, and the kubelet need not watch it.
        immutable: Some(true),
        binary_data: Some([(key, ByteString(content.to_vec()))].into()),
        data: None,
    }
}

fn name_of(object: &ConfigMap) -> &str {
    object.metadata.name.as_deref().expect("made with a name")
}

fn key_of(object: &ConfigMap) -> String {
    object.binary_data.iter().flatten().map(|(key, _)| key.clone()).next().expect("made with one key")
}

/// SHA-256 in hexadecimal.
pub(super) fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What Kubernetes calls the architecture of an ELF file (`e_machine`, elf.h).
fn architecture(program: &[u8]) -> Option<&'static str> {
    match program.get(..20)? {
        [0x7f, b'E', b'L', b'F', .., 62, 0] => Some("amd64"),
        [0x7f, b'E', b'L', b'F', .., 183, 0] => Some("arm64"),
        _ => None,
    }
}

#[cfg(test)]
impl Payload {
    /// Of as many parts as `bytes` need; never executed.
    pub(crate) fn for_test(bytes: usize) -> Self {
        let mut server = vec![7; bytes];
        server[..2].copy_from_slice(&[0x1f, 0x8b]);
        let mut loader = b"\x7fELF".to_vec();
        loader.resize(18, 0);
        loader.extend([62, 0]);
        Self::new(Cow::Owned(server), Cow::Owned(loader)).unwrap()
    }

    /// What the API server answers for the loader's ConfigMap.
    pub(crate) fn loader_object(&self) -> serde_json::Value {
        serde_json::to_value(&self.objects()[0]).unwrap()
    }
}

#[cfg(test)]
mod tests;
