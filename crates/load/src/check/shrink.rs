//! Takes away from a history whatever is not needed to show what broke.

/// The items that are left when no further one can be spared: `shows` stays true for them. Chunks are tried
/// first, half of all, then ever smaller ones (delta debugging), so that few of many are found quickly.
pub(crate) fn shrink<T: Clone>(items: &[T], mut shows: impl FnMut(&[T]) -> bool) -> Vec<T> {
    let mut kept = items.to_vec();
    let mut chunk = kept.len().div_ceil(2);
    while chunk > 0 {
        let mut spared = false;
        let mut at = 0;
        while at < kept.len() {
            let end = (at + chunk).min(kept.len());
            let without = [&kept[..at], &kept[end..]].concat();
            if shows(&without) {
                kept = without;
                spared = true;
            } else {
                at = end;
            }
        }
        // What could not be spared before may be once others are gone.
        chunk = match (chunk, spared) {
            (1, false) => 0,
            (1, true) => 1,
            _ => chunk / 2,
        };
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::shrink;

    #[test]
    fn only_what_is_needed_is_left() {
        let items: Vec<u32> = (0..5_000).collect();
        let mut tries = 0;
        let left = shrink(&items, |left| {
            tries += 1;
            left.contains(&17) && left.contains(&4_321)
        });
        assert_eq!(left, [17, 4_321]);
        assert!(tries < 200, "{tries} tries");
    }

    #[test]
    fn nothing_can_be_spared_twice() {
        // Any three of them show it.
        let left = shrink(&(0..40).collect::<Vec<_>>(), |left| left.len() >= 3);
        assert_eq!(left.len(), 3);
        assert!(shrink(&[0_u8; 0], |_| true).is_empty());
    }
}
