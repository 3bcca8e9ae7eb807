//! Validated calls: a problem and views that fit it. Only the constructors here make them, so a backend may trust them.

use crate::backend::Backend;
use crate::element::{Element, InputElement};
use crate::error::ProblemError;
use crate::operands::{Gradients, Inputs, Output, Partials, Saved};
use crate::problem::Problem;

/// What a forward call reads, in views of a backend.
pub type InputViews<'c, B, E> = Inputs<<B as Backend>::View<'c, E>>;
/// What a forward call writes. Log-sum-exps are f32, whatever the element type.
pub type OutputViews<'c, B, E> = Output<<B as Backend>::ViewMut<'c, E>, <B as Backend>::ViewMut<'c, f32>>;
/// What a backward call reads besides the inputs.
pub type SavedViews<'c, B, E> = Saved<<B as Backend>::View<'c, E>, <B as Backend>::View<'c, f32>>;
/// What a backward call writes.
pub type GradientViews<'c, B, E> = Gradients<<B as Backend>::ViewMut<'c, E>>;
/// All views of a backward call: what the forward read, what else is read, and what is written.
pub type BackwardViews<'c, B, E> = (
    InputViews<'c, B, E>,
    SavedViews<'c, B, <E as InputElement>::Out>,
    GradientViews<'c, B, <E as InputElement>::Out>,
);
/// What a merge reads.
pub type PartialViews<'c, B, E> = Partials<<B as Backend>::View<'c, E>, <B as Backend>::View<'c, f32>>;
/// The gradient of what a merge wrote.
pub type MergedGradientViews<'c, B, E> = Output<<B as Backend>::View<'c, E>, <B as Backend>::View<'c, f32>>;
/// What the gradient of a merge writes: an output's and a log-sum-exp's for each partial result.
pub type PartialGradientViews<'c, B, E> =
    Partials<<B as Backend>::ViewMut<'c, E>, <B as Backend>::ViewMut<'c, f32>>;

/// All views of a merge's gradient: what was merged, the gradient of the result, and what is written.
pub type MergeBackwardViews<'c, B, E> =
    (PartialViews<'c, B, E>, MergedGradientViews<'c, B, E>, PartialGradientViews<'c, B, E>);

/// A forward call whose views fit its problem.
pub struct ForwardCall<'c, B: Backend, E: InputElement> {
    problem: &'c Problem,
    inputs: InputViews<'c, B, E>,
    output: OutputViews<'c, B, E::Out>,
}

impl<'c, B: Backend, E: InputElement> ForwardCall<'c, B, E> {
    /// Holds the views against the problem.
    ///
    /// # Errors
    /// Those of [`Problem::check_inputs`] and [`Problem::check_output`].
    pub fn new(
        problem: &'c Problem,
        inputs: InputViews<'c, B, E>,
        output: OutputViews<'c, B, E::Out>,
    ) -> Result<Self, ProblemError> {
        problem.check_inputs(&inputs.map(|view| B::layout(view)), E::ELEMENT_TYPE)?;
        problem.check_output(&output.map(|out| B::layout_mut(out), |lse| B::layout_mut(lse)))?;
        Ok(ForwardCall { problem, inputs, output })
    }

    /// What is asked.
    pub fn problem(&self) -> &'c Problem {
        self.problem
    }

    /// What is read.
    pub fn inputs(&self) -> &InputViews<'c, B, E> {
        &self.inputs
    }

    /// What is written.
    pub fn output(&self) -> &OutputViews<'c, B, E::Out> {
        &self.output
    }

    /// What is read, and what is written, to write it.
    pub fn into_views(self) -> (InputViews<'c, B, E>, OutputViews<'c, B, E::Out>) {
        (self.inputs, self.output)
    }
}

/// A backward call whose views fit its problem.
pub struct BackwardCall<'c, B: Backend, E: InputElement> {
    problem: &'c Problem,
    inputs: InputViews<'c, B, E>,
    saved: SavedViews<'c, B, E::Out>,
    gradients: GradientViews<'c, B, E::Out>,
}

impl<'c, B: Backend, E: InputElement> BackwardCall<'c, B, E> {
    /// Holds the views against the problem.
    ///
    /// # Errors
    /// Those of [`Problem::check_inputs`], [`Problem::check_saved`] and [`Problem::check_gradients`].
    pub fn new(
        problem: &'c Problem,
        inputs: InputViews<'c, B, E>,
        saved: SavedViews<'c, B, E::Out>,
        gradients: GradientViews<'c, B, E::Out>,
    ) -> Result<Self, ProblemError> {
        problem.check_inputs(&inputs.map(|view| B::layout(view)), E::ELEMENT_TYPE)?;
        problem.check_saved(&saved.map(|view| B::layout(view), |view| B::layout(view)))?;
        problem.check_gradients(&gradients.map(|view| B::layout_mut(view)))?;
        Ok(BackwardCall { problem, inputs, saved, gradients })
    }

    /// What is asked.
    pub fn problem(&self) -> &'c Problem {
        self.problem
    }

    /// What the forward read.
    pub fn inputs(&self) -> &InputViews<'c, B, E> {
        &self.inputs
    }

    /// What else is read.
    pub fn saved(&self) -> &SavedViews<'c, B, E::Out> {
        &self.saved
    }

    /// What is written.
    pub fn gradients(&self) -> &GradientViews<'c, B, E::Out> {
        &self.gradients
    }

    /// What is read, and what is written, to write it.
    pub fn into_views(self) -> BackwardViews<'c, B, E> {
        (self.inputs, self.saved, self.gradients)
    }
}

/// A merge whose views fit each other.
pub struct MergeCall<'c, B: Backend, E: Element> {
    partials: PartialViews<'c, B, E>,
    output: OutputViews<'c, B, E>,
}

impl<'c, B: Backend, E: Element> MergeCall<'c, B, E> {
    /// Holds the views against each other.
    ///
    /// # Errors
    /// Those of [`Partials::check`] and [`Partials::check_output`].
    pub fn new(
        partials: PartialViews<'c, B, E>,
        output: OutputViews<'c, B, E>,
    ) -> Result<Self, ProblemError> {
        let layouts = partials.map(|out| B::layout(out), |lse| B::layout(lse));
        layouts.check()?;
        layouts.check_output(&output.map(|out| B::layout_mut(out), |lse| B::layout_mut(lse)))?;
        Ok(MergeCall { partials, output })
    }

    /// What is read.
    pub fn partials(&self) -> &PartialViews<'c, B, E> {
        &self.partials
    }

    /// What is written.
    pub fn output(&self) -> &OutputViews<'c, B, E> {
        &self.output
    }

    /// What is read, and what is written, to write it.
    pub fn into_views(self) -> (PartialViews<'c, B, E>, OutputViews<'c, B, E>) {
        (self.partials, self.output)
    }
}

/// The gradient of a merge, with views that fit each other.
pub struct MergeBackwardCall<'c, B: Backend, E: Element> {
    partials: PartialViews<'c, B, E>,
    merged: MergedGradientViews<'c, B, E>,
    gradients: PartialGradientViews<'c, B, E>,
}

impl<'c, B: Backend, E: Element> MergeBackwardCall<'c, B, E> {
    /// Holds the views against each other. `merged` is the gradient of the merged output and, if it was used, of the merged
    /// log-sum-exp; `gradients` is written, one for each partial result.
    ///
    /// # Errors
    /// Those of [`Partials::check`], [`Partials::check_output`] and [`Partials::check_gradients`].
    pub fn new(
        partials: PartialViews<'c, B, E>,
        merged: MergedGradientViews<'c, B, E>,
        gradients: PartialGradientViews<'c, B, E>,
    ) -> Result<Self, ProblemError> {
        let layouts = partials.map(|out| B::layout(out), |lse| B::layout(lse));
        layouts.check()?;
        layouts.check_output(&merged.map(|d_out| B::layout(d_out), |d_lse| B::layout(d_lse)))?;
        layouts
            .check_gradients(&gradients.map(|d_out| B::layout_mut(d_out), |d_lse| B::layout_mut(d_lse)))?;
        Ok(MergeBackwardCall { partials, merged, gradients })
    }

    /// What was merged.
    pub fn partials(&self) -> &PartialViews<'c, B, E> {
        &self.partials
    }

    /// The gradient of what they merged into.
    pub fn merged(&self) -> &MergedGradientViews<'c, B, E> {
        &self.merged
    }

    /// What is written.
    pub fn gradients(&self) -> &PartialGradientViews<'c, B, E> {
        &self.gradients
    }

    /// What is read, and what is written, to write it.
    pub fn into_views(self) -> MergeBackwardViews<'c, B, E> {
        (self.partials, self.merged, self.gradients)
    }
}
