//! `quorate cert`: files that make a cluster of strangers into one of members.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use quorate_node::tls::{Ca, TlsError, make_ca};

use super::{Failure, print};
use crate::config::values::{Name, parser};
use crate::shutdown::Exit;

/// The kinds of certificates.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a cluster's authority: ca.crt and ca.key
    Ca(CaArgs),
    /// Make a node's certificate, signed by the authority: NAME.crt and NAME.key
    Node(NodeArgs),
    /// Make a client's certificate, signed by the authority, for nodes with --trusted-ca-file: NAME.crt and
    /// NAME.key
    Client(ClientArgs),
}

/// Arguments of `cert client`.
#[derive(Debug, clap::Args)]
pub struct ClientArgs {
    /// Common name of the certificate: the user, where `serve` has --client-cert-auth
    #[arg(long, value_name = "NAME", value_parser = parser::<Name>)]
    name: Name,
    /// Where to put the files
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// The authority's certificate [default: ca.crt in DIR]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The authority's private key [default: ca.key in DIR]
    #[arg(long, value_name = "FILE")]
    ca_key: Option<PathBuf>,
}

/// Arguments of `cert ca`.
#[derive(Debug, clap::Args)]
pub struct CaArgs {
    /// Name of the cluster, as `serve --cluster-name` has it
    #[arg(long, value_name = "NAME", default_value = "quorate", value_parser = parser::<Name>)]
    cluster_name: Name,
    /// Where to put the files
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
}

/// Arguments of `cert node`.
#[derive(Debug, clap::Args)]
pub struct NodeArgs {
    /// Name of the node, as `serve --name` has it
    #[arg(long, value_name = "NAME", value_parser = parser::<Name>)]
    name: Name,
    /// Name of the cluster, as `serve --cluster-name` has it
    #[arg(long, value_name = "NAME", default_value = "quorate", value_parser = parser::<Name>)]
    cluster_name: Name,
    /// Further host names and addresses for the certificate; nodes do not need them, clients do where it is
    /// the --cert-file too
    #[arg(long = "host", value_name = "HOST")]
    hosts: Vec<String>,
    /// Where to put the files
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// The authority's certificate [default: ca.crt in DIR]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The authority's private key [default: ca.key in DIR]
    #[arg(long, value_name = "FILE")]
    ca_key: Option<PathBuf>,
}

/// Why certificates were not made; nothing was written then.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// There is something under the name already.
    #[error("{0} exists; it is not overwritten")]
    Exists(PathBuf),
    /// The system refuses.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A name or an authority cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Runs the command.
///
/// # Errors
/// When no certificate can be made; the exit code is 1.
pub fn run(command: &Command) -> Result<(), Failure> {
    let made = match command {
        Command::Client(args) => {
            let of_dir = |given: &Option<PathBuf>, name: &str| {
                given.clone().unwrap_or_else(|| args.dir.join(name))
            };
            let (cert, key) = (of_dir(&args.ca, "ca.crt"), of_dir(&args.ca_key, "ca.key"));
            load_ca(&cert, &key).and_then(|ca| write_client(&args.dir, &ca, &args.name.0))
        }
        Command::Ca(args) => write_ca(&args.dir, &args.cluster_name.0).map(|(_, files)| files),
        Command::Node(args) => {
            let of_dir = |given: &Option<PathBuf>, name: &str| {
                given.clone().unwrap_or_else(|| args.dir.join(name))
            };
            let (cert, key) = (of_dir(&args.ca, "ca.crt"), of_dir(&args.ca_key, "ca.key"));
            load_ca(&cert, &key).and_then(|ca| {
                write_node(&args.dir, &ca, &args.cluster_name.0, &args.name.0, &args.hosts)
            })
        }
    };
    let files = made.map_err(|error| Failure::new(Exit::Failed, error))?;
    print(&format!("{}\n{}\n", files.cert.display(), files.key.display()));
    Ok(())
}

/// A certificate and its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Files {
    /// The certificate.
    pub cert: PathBuf,
    /// The private key, which only its owner can read.
    pub key: PathBuf,
}

impl Files {
    /// The files called `name` in `dir`.
    #[must_use]
    pub fn in_dir(dir: &Path, name: &str) -> Self {
        Self { cert: dir.join(format!("{name}.crt")), key: dir.join(format!("{name}.key")) }
    }
}

/// Makes an authority and writes its files.
///
/// # Errors
/// When a file exists or cannot be written.
pub fn write_ca(dir: &Path, cluster_name: &str) -> Result<(Ca, Files), CertError> {
    let files = Files::in_dir(dir, "ca");
    let ca = make_ca(cluster_name)?;
    write_pair(&files, ca.cert_pem(), &ca.key_pem())?;
    Ok((ca, files))
}

/// Reads an authority.
///
/// # Errors
/// When the files are not one.
pub fn load_ca(cert: &Path, key: &Path) -> Result<Ca, CertError> {
    Ok(Ca::from_pem(&read(cert)?, &read(key)?)?)
}

/// Makes a node's certificate and writes its files.
///
/// # Errors
/// When a file exists or cannot be written, or a name cannot stand in a certificate.
pub fn write_node(
    dir: &Path,
    ca: &Ca,
    cluster_name: &str,
    node_name: &str,
    hosts: &[String],
) -> Result<Files, CertError> {
    let files = Files::in_dir(dir, node_name);
    let issued = ca.issue(cluster_name, node_name, hosts)?;
    write_pair(&files, &issued.cert_pem, &issued.key_pem)?;
    Ok(files)
}

/// Makes a client's certificate and writes its files.
///
/// # Errors
/// When a file exists or cannot be written.
pub fn write_client(dir: &Path, ca: &Ca, common_name: &str) -> Result<Files, CertError> {
    let files = Files::in_dir(dir, common_name);
    let issued = ca.issue_client(common_name)?;
    write_pair(&files, &issued.cert_pem, &issued.key_pem)?;
    Ok(files)
}

fn read(path: &Path) -> Result<String, CertError> {
    fs::read_to_string(path).map_err(|source| CertError::Io { path: path.to_owned(), source })
}

/// Writes both files or, if one of them exists, none.
fn write_pair(files: &Files, cert_pem: &str, key_pem: &str) -> Result<(), CertError> {
    for path in [&files.cert, &files.key] {
        if path.symlink_metadata().is_ok() {
            return Err(CertError::Exists(path.clone()));
        }
    }
    if let Some(dir) = files.cert.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        fs::create_dir_all(dir).map_err(|source| CertError::Io { path: dir.to_owned(), source })?;
    }
    write_new(&files.key, 0o600, key_pem)?;
    write_new(&files.cert, 0o644, cert_pem)
}

fn write_new(path: &Path, mode: u32, text: &str) -> Result<(), CertError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => CertError::Exists(path.to_owned()),
        _ => CertError::Io { path: path.to_owned(), source },
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_for_their_owner_alone_and_files_can_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let (_, files) = write_ca(dir.path(), "c").unwrap();
        let ca = load_ca(&files.cert, &files.key).unwrap();
        let node = write_node(dir.path(), &ca, "c", "n1", &["localhost".to_owned()]).unwrap();
        for key in [files.key, node.key] {
            let mode = fs::metadata(&key).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", key.display());
        }
        assert!(fs::read_to_string(node.cert).unwrap().contains("BEGIN CERTIFICATE"));
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, files) = write_ca(dir.path(), "c").unwrap();
        let before = fs::read(&files.key).unwrap();
        let error = write_ca(dir.path(), "c").unwrap_err().to_string();
        assert_eq!(error, format!("{} exists; it is not overwritten", files.cert.display()));
        assert_eq!(fs::read(&files.key).unwrap(), before);

        // One of the two is enough, and then the other is not made.
        let key = dir.path().join("n1.key");
        fs::write(&key, "mine").unwrap();
        let error = write_node(dir.path(), &ca, "c", "n1", &[]).unwrap_err();
        assert!(matches!(error, CertError::Exists(path) if path == key));
        assert!(!dir.path().join("n1.crt").exists());
        assert_eq!(fs::read_to_string(key).unwrap(), "mine");
    }

    #[test]
    fn a_missing_authority_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("ca.crt"), dir.path().join("ca.key"));
        let error = load_ca(&cert, &key).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}: ", cert.display())), "{error}");
    }
}
