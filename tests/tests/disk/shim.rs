//! The library that stands between nodes and their disks, and the rules that it keeps.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use quorate_tests::cluster::Cluster;
use quorate_tests::programs;
use tempfile::TempDir;

/// The built library, and a file with a rule for each node.
pub(crate) struct Shim {
    dir: TempDir,
    library: PathBuf,
    generation: u64,
}

impl Shim {
    /// Builds it; none, and a line that names `test` and the reason, when there is no C compiler.
    pub(crate) fn build(test: &str) -> Option<Self> {
        let dir = TempDir::with_prefix("quorate-shim-").expect("a temporary directory can be made");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/disk/shim.c");
        let library = dir.path().join("shim.so");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-Wall", "-o"]).arg(&library).arg(source);
        let built = match compiler.output() {
            Ok(built) => built,
            Err(error) => {
                programs::skip(test, &format!("no C compiler: {error}"));
                return None;
            }
        };
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        Some(Self { dir, library, generation: 0 })
    }

    /// A cluster whose nodes write their logs through the library.
    pub(crate) fn cluster(&self, test: &str) -> Option<Cluster> {
        let mut cluster = Cluster::prepare(test, &[])?;
        for node in &mut cluster.nodes {
            let control = self.control(&node.name);
            fs::write(&control, "0 none none 0").expect("a rule can be written");
            node.env = vec![
                ("LD_PRELOAD".to_owned(), self.library.clone().into()),
                ("SHIM_CONTROL".to_owned(), control.into()),
                ("SHIM_FILES".to_owned(), format!("/{}/log/", node.name).into()),
            ];
        }
        cluster.start_all();
        cluster.is_quorate().then_some(cluster)
    }

    /// From now on `rule` holds for the node `name`: call, action and number, as `shim.c` has them.
    pub(crate) fn set(&mut self, name: &str, rule: &str) {
        self.generation += 1;
        // In one step: the library must not read half a rule.
        let new = self.dir.path().join("new");
        fs::write(&new, format!("{} {rule}", self.generation)).expect("a rule can be written");
        fs::rename(new, self.control(name)).expect("and put in place");
    }

    fn control(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}
