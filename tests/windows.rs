//! Windows of any axis: their size and bounds.

use natten::window::Axis;
use proptest::prelude::*;

/// A valid axis: extent, window, stride, dilation, causality.
fn axis(most: usize) -> impl Strategy<Value = [usize; 5]> {
    (1..=most, 0.0..1.0f64, 0.0..1.0f64, 0.0..1.0f64, any::<bool>()).prop_map(|(extent, k, s, d, causal)| {
        let upto = |part: f64, most: usize| 1 + ((part * most as f64) as usize).min(most - 1);
        let kernel = upto(k, extent);
        [extent, kernel, upto(s, kernel), upto(d, extent / kernel), usize::from(causal)]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Windows lie inside the axis, hold the query, have the size asked for, and never move back.
    #[test]
    fn windows_have_their_size_and_bounds([extent, w, s, d, causal] in axis(500)) {
        let is_causal = causal == 1;
        let axis = Axis { kernel_size: w, stride: s, dilation: d, is_causal, ..Axis::whole(extent) };
        let mut tokens = 0;
        for g in 0..d {
            let residue = axis.residue(g);
            tokens += residue.query_len;
            let mut last = 0..0;
            for i in 0..residue.query_len {
                let window = residue.window(i);
                prop_assert!(window.contains(&i) && window.end <= residue.key_len);
                prop_assert!(window.start >= last.start && window.end >= last.end);
                if is_causal {
                    prop_assert!(window.end == i + 1 && window.len() <= w);
                    prop_assert!(window.start == 0 || window.len() > w - s);
                } else {
                    prop_assert_eq!(window.len(), w);
                }
                last = window;
            }
        }
        prop_assert_eq!(tokens, extent);
    }
}
