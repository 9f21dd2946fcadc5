//! Who else gets at a data directory. One that is there already keeps the rights that it has, and what is in it is
//! hidden by nothing else.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The mode that a data directory is made with: keys and values are nobody else's business.
pub(crate) const MODE: u32 = 0o700;

/// Warns if the directory is open to others.
pub(crate) fn look_at(directory: &Path) -> io::Result<()> {
    let mode = fs::metadata(directory)?.permissions().mode();
    if let Some(warning) = warning(mode) {
        tracing::warn!(directory = %directory.display(), "{warning}");
    }
    Ok(())
}

/// What is to be said of a directory of this mode; nothing of one that is its owner's alone.
fn warning(mode: u32) -> Option<String> {
    let rights = mode & 0o777;
    (rights & !MODE != 0).then(|| {
        format!(
            "the data directory is open to others: its mode is {rights:04o}, {MODE:04o} is wanted"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_may_do_is_warned_of_and_what_the_owner_may_is_not() {
        // With the bits of a directory, and the one by which what is made in it has its group.
        for mode in [0o700, 0o500, 0o0, 0o40_700, 0o42_700] {
            assert_eq!(warning(mode), None, "{mode:o}");
        }
        for (mode, shown) in [
            (0o40_755, "0755"),
            (0o42_770, "0770"),
            (0o750, "0750"),
            (0o701, "0701"),
            (0o702, "0702"),
            (0o704, "0704"),
            (0o710, "0710"),
            (0o777, "0777"),
        ] {
            let expected = format!(
                "the data directory is open to others: its mode is {shown}, 0700 is wanted"
            );
            assert_eq!(warning(mode), Some(expected));
        }
    }
}
