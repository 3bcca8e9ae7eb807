//! The operator's parameters: window, stride, dilation and causality per axis, and the scale; and of which part of a whole a
//! call is.

use crate::error::ProblemError;
use crate::region::{Region, expect_countable};
use crate::window::Axis;

/// Extent of the window along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KernelSize {
    /// So many tokens (of one dilation residue).
    Tokens(usize),
    /// As many as fit: `token_extent / dilation`, rounded down.
    ///
    /// Without dilation that is the whole axis, and where the dilation divides the extent every token of a query's
    /// residue. Where it does not, the first `token_extent % dilation` residues have one token more than the others,
    /// and than the window: their queries slide over it as over any axis longer than its window.
    Whole,
}

/// What to do when `kernel_size * dilation` exceeds the axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KernelSizePolicy {
    /// Report it.
    #[default]
    Exact,
    /// Shrink `kernel_size` to what fits, `token_extent / dilation`, and `stride` to the shrunk window. A dilation
    /// longer than the axis is still an error, as is a stride longer than the window asked for.
    Clamp,
}

/// A value for each axis: written once for all, or as an array.
pub trait PerAxis<T, const RANK: usize> {
    /// One value an axis.
    fn per_axis(self) -> [T; RANK];
}

macro_rules! per_axis {
    ($from:ty => $to:ty, $convert:expr) => {
        impl<const RANK: usize> PerAxis<$to, RANK> for $from {
            fn per_axis(self) -> [$to; RANK] {
                [$convert(self); RANK]
            }
        }
        impl<const RANK: usize> PerAxis<$to, RANK> for [$from; RANK] {
            fn per_axis(self) -> [$to; RANK] {
                self.map($convert)
            }
        }
    };
}

per_axis!(usize => usize, std::convert::identity);
per_axis!(bool => bool, std::convert::identity);
per_axis!(usize => KernelSize, KernelSize::Tokens);
per_axis!(KernelSize => KernelSize, std::convert::identity);

/// Parameters of neighborhood attention over `RANK` token axes, 1 to 3.
///
/// Nothing is checked here; [`Problem::new`](crate::Problem::new) checks all of it against the tensors.
///
/// # Examples
/// ```
/// use natten_core::Params;
/// let image = Params::new([7, 7]).dilation([1, 2]);
/// let video = Params::new([3, 7, 7]).is_causal([true, false, false]).scale(1.0);
/// let wide = Params::<3>::new(5).whole_axis(0);
/// # let _ = (image, video, wide);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params<const RANK: usize> {
    kernel_size: [KernelSize; RANK],
    stride: [usize; RANK],
    dilation: [usize; RANK],
    is_causal: [bool; RANK],
    scale: Option<f32>,
    policy: KernelSizePolicy,
    regions: [Option<Region>; RANK],
    /// An axis that was to be opened or to hold a region, and that there is not; a builder cannot report it.
    no_such_axis: Option<usize>,
}

impl<const RANK: usize> Params<RANK> {
    /// A window of `kernel_size` tokens per axis (one number for all axes, or an array), stride 1, no dilation,
    /// not causal, scale `head_dim^-1/2`.
    pub fn new(kernel_size: impl PerAxis<KernelSize, RANK>) -> Self {
        const { assert!(RANK >= 1 && RANK <= 3, "neighborhood attention has 1, 2 or 3 token axes") };
        Params {
            kernel_size: kernel_size.per_axis(),
            stride: [1; RANK],
            dilation: [1; RANK],
            is_causal: [false; RANK],
            scale: None,
            policy: KernelSizePolicy::Exact,
            regions: [None; RANK],
            no_such_axis: None,
        }
    }

    /// Queries in blocks of `stride` tokens share one window; 1 to `kernel_size`.
    pub fn stride(mut self, stride: impl PerAxis<usize, RANK>) -> Self {
        self.stride = stride.per_axis();
        self
    }

    /// Step between the window's tokens; `kernel_size * dilation` must not exceed the axis.
    pub fn dilation(mut self, dilation: impl PerAxis<usize, RANK>) -> Self {
        self.dilation = dilation.per_axis();
        self
    }

    /// Whether a query sees only tokens up to its own position along an axis.
    pub fn is_causal(mut self, is_causal: impl PerAxis<bool, RANK>) -> Self {
        self.is_causal = is_causal.per_axis();
        self
    }

    /// Factor on the scores before the softmax; any finite number, 0 included.
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Opens the window along `axis` to all that fits, [`KernelSize::Whole`], which also says what that is with a
    /// dilation.
    ///
    /// `axis` counts token axes from 0; [`Problem::new`](crate::Problem::new) reports one that there is not, as
    /// [`ProblemError::NoSuchAxis`].
    pub fn whole_axis(mut self, axis: usize) -> Self {
        match self.kernel_size.get_mut(axis) {
            Some(size) => *size = KernelSize::Whole,
            None => self.no_such_axis = Some(axis),
        }
        self
    }

    /// What to do when the window does not fit the axis.
    pub fn policy(mut self, policy: KernelSizePolicy) -> Self {
        self.policy = policy;
        self
    }

    /// The tensors hold a part of `axis`: the windows are those of the whole, of which the queries and the keys are the tokens
    /// that `region` says. Window, stride and dilation are held against the whole's extent.
    ///
    /// `axis` counts token axes from 0; [`Problem::new`](crate::Problem::new) reports one that there is not, as
    /// [`ProblemError::NoSuchAxis`].
    ///
    /// # Examples
    /// ```
    /// use natten_core::{Params, Region};
    /// // Four of 33 frames, and those around them that they see.
    /// let frames = Region::of(33).queries(16..20).keys(14..22);
    /// let params = Params::new([5, 7, 7]).region(0, frames);
    /// # let _ = params;
    /// ```
    pub fn region(mut self, axis: usize, region: Region) -> Self {
        match self.regions.get_mut(axis) {
            Some(of_axis) => *of_axis = Some(region),
            None => self.no_such_axis = Some(axis),
        }
        self
    }

    /// The same parameters with the rank as a value.
    pub fn to_dyn(&self) -> DynParams {
        let axes = std::array::from_fn(|axis| AxisParams {
            kernel_size: self.kernel_size.get(axis).copied().unwrap_or(KernelSize::Tokens(1)),
            stride: self.stride.get(axis).copied().unwrap_or(1),
            dilation: self.dilation.get(axis).copied().unwrap_or(1),
            is_causal: self.is_causal.get(axis).copied().unwrap_or(false),
        });
        DynParams {
            rank: RANK,
            axes,
            scale: self.scale,
            policy: self.policy,
            regions: std::array::from_fn(|axis| self.regions.get(axis).copied().flatten()),
            no_such_axis: self.no_such_axis,
        }
    }
}

impl<const RANK: usize> From<&Params<RANK>> for DynParams {
    fn from(params: &Params<RANK>) -> Self {
        params.to_dyn()
    }
}

impl<const RANK: usize> From<Params<RANK>> for DynParams {
    fn from(params: Params<RANK>) -> Self {
        params.to_dyn()
    }
}

/// Parameters of one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AxisParams {
    /// Window, in tokens.
    pub kernel_size: KernelSize,
    /// Queries sharing one window.
    pub stride: usize,
    /// Step between the window's tokens.
    pub dilation: usize,
    /// Whether later tokens are hidden.
    pub is_causal: bool,
}

impl AxisParams {
    /// A window of `kernel_size` tokens, stride 1, no dilation, not causal.
    pub fn new(kernel_size: usize) -> Self {
        AxisParams { kernel_size: KernelSize::Tokens(kernel_size), stride: 1, dilation: 1, is_causal: false }
    }
}

impl AxisParams {
    /// The mask of a whole axis of so many tokens.
    ///
    /// # Errors
    /// What is wrong with window, stride or dilation.
    fn on(&self, axis: usize, token_extent: usize, policy: KernelSizePolicy) -> Result<Axis, ProblemError> {
        let AxisParams { kernel_size, stride, dilation, is_causal } = *self;
        if dilation == 0 {
            return Err(ProblemError::DilationZero { axis });
        }
        if stride == 0 {
            return Err(ProblemError::StrideZero { axis });
        }
        let fits = token_extent / dilation;
        let (asked, is_cut) = match kernel_size {
            KernelSize::Tokens(0) => return Err(ProblemError::KernelSizeZero { axis }),
            KernelSize::Tokens(tokens) => (tokens, policy == KernelSizePolicy::Clamp),
            KernelSize::Whole => (fits, true),
        };
        // A window cut to what fits may have nothing to be cut to; its size is then not to blame.
        if is_cut && fits == 0 {
            return Err(ProblemError::DilationTooLarge { axis, dilation, token_extent });
        }
        let kernel_size = if is_cut { asked.min(fits) } else { asked };
        if kernel_size > fits {
            return Err(ProblemError::KernelSizeTooLarge { axis, kernel_size, dilation, token_extent });
        }
        // Against the window asked for: clamping excuses what the axis is too short for, not a mistake.
        if stride > asked {
            return Err(ProblemError::StrideTooLarge { axis, stride, kernel_size: asked });
        }
        let stride = stride.min(kernel_size);
        Ok(Axis { kernel_size, stride, dilation, is_causal, ..Axis::whole(token_extent) })
    }
}

/// [`Params`] with the rank as a value, for callers that learn it at run time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DynParams {
    pub(crate) rank: usize,
    pub(crate) axes: [AxisParams; 3],
    pub(crate) scale: Option<f32>,
    pub(crate) policy: KernelSizePolicy,
    pub(crate) regions: [Option<Region>; 3],
    pub(crate) no_such_axis: Option<usize>,
}

impl DynParams {
    /// One entry an axis; `scale = None` means `head_dim^-1/2`. A rank outside 1 to 3 is reported by
    /// [`Problem::new`](crate::Problem::new).
    pub fn new(axes: &[AxisParams], scale: Option<f32>, policy: KernelSizePolicy) -> Self {
        let padded = std::array::from_fn(|i| axes.get(i).copied().unwrap_or(AxisParams::new(1)));
        DynParams { rank: axes.len(), axes: padded, scale, policy, regions: [None; 3], no_such_axis: None }
    }

    /// The same with another window along an axis.
    pub fn with_axis(mut self, axis: usize, params: AxisParams) -> Self {
        match self.axes[..self.rank.min(3)].get_mut(axis) {
            Some(of_axis) => *of_axis = params,
            None => self.no_such_axis = Some(axis),
        }
        self
    }

    /// As [`Params::region`].
    pub fn region(mut self, axis: usize, region: Region) -> Self {
        match self.regions[..self.rank.min(3)].get_mut(axis) {
            Some(of_axis) => *of_axis = Some(region),
            None => self.no_such_axis = Some(axis),
        }
        self
    }

    /// The mask of a whole axis of so many tokens, for [`region::keys_needed`](crate::region::keys_needed) and the like.
    ///
    /// # Errors
    /// Those of [`Problem::new`](crate::Problem::new) on window, stride and dilation; [`ProblemError::NoSuchAxis`];
    /// [`RegionError::TooLong`](crate::region::RegionError::TooLong).
    pub fn axis(&self, axis: usize, extent: usize) -> Result<Axis, ProblemError> {
        match self.axes[..self.rank.min(3)].get(axis) {
            Some(params) => {
                expect_countable(axis, extent)?;
                params.on(axis, extent, self.policy)
            }
            None => Err(ProblemError::NoSuchAxis { axis, rank: self.rank }),
        }
    }

    /// Number of token axes.
    pub fn rank(&self) -> usize {
        self.rank
    }
}

/// Parameters of plain attention: every query sees every key, or those up to its own place among them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AttentionParams {
    pub(crate) causality: Causality,
    pub(crate) scale: Option<f32>,
}

/// Which keys of plain attention are hidden from query `i` of `Q`, with `K` keys.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Causality {
    /// None.
    #[default]
    Open,
    /// Those after key `i`.
    FromStart,
    /// Those after key `i + K - Q`.
    FromEnd,
}

impl AttentionParams {
    /// Not causal, scale `head_dim^-1/2`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Key `j` is visible to query `i` only if `j <= i`: aligned at the top left, also when the numbers of
    /// queries and keys differ. [`AttentionParams::causal_from_end`] aligns at the bottom right instead; of the two the
    /// last one said holds, and `false` takes back either.
    pub fn is_causal(mut self, is_causal: bool) -> Self {
        self.causality = if is_causal { Causality::FromStart } else { Causality::Open };
        self
    }

    /// Key `j` of `K` is visible to query `i` of `Q` only if `j <= i + K - Q`: aligned at the bottom right, so that the
    /// last query sees every key. That is decoding with a cache of keys, of which the queries are the last `Q`; it is what
    /// FlashAttention (since 2.1), xFormers' `LowerTriangularFromBottomRightMask` and PyTorch's `causal_lower_right` do.
    ///
    /// With more queries than keys the first `Q - K` see no key: their output is 0, their log-sum-exp minus infinity,
    /// and they take no part in any gradient. In a packed batch `Q` and `K` are those of each sequence.
    ///
    /// # Examples
    /// ```
    /// use natten_core::AttentionParams;
    /// let one_new_token = AttentionParams::new().causal_from_end();
    /// # let _ = one_new_token;
    /// ```
    pub fn causal_from_end(mut self) -> Self {
        self.causality = Causality::FromEnd;
        self
    }

    /// Factor on the scores before the softmax; any finite number, 0 included.
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }
}
