//! The operands of a call by name, of whatever stands for a tensor: views, layouts, owned tensors. All that goes through
//! them field by field is here.

use crate::error::Role;

/// The operands of a call. `V` is whatever stands for a tensor: a view, or a [`Layout`](crate::Layout) for validation.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<V> {
    /// `[batch, tokens.., heads, head_dim]`
    pub query: V,
    /// `[batch, tokens.., heads_kv, head_dim]`
    pub key: V,
    /// `[batch, tokens.., heads_kv, head_dim_v]`
    pub value: V,
    /// Keys `[batch, n, heads_kv, head_dim]` and values `[batch, n, heads_kv, head_dim_v]` that every query
    /// sees besides its window, in the same softmax.
    pub additional: Option<[V; 2]>,
}

/// What a forward call gives. `lse` is the natural logarithm of the sum of exponentials of the scaled scores.
#[derive(Clone, Copy, Debug)]
pub struct Output<O, L> {
    /// `[batch, tokens.., heads, head_dim_v]`
    pub out: O,
    /// `[batch, tokens.., heads]`, when asked for.
    pub lse: Option<L>,
}

/// What a backward call reads besides the inputs.
#[derive(Clone, Copy, Debug)]
pub struct Saved<V, L, D = V> {
    /// The forward's output. For one branch of a merge: the merged output.
    pub out: V,
    /// The forward's log-sum-exp. For one branch of a merge: the merged one.
    pub lse: L,
    /// Gradient of the output, which may be a view where the output is owned. Of any strides: where its rows are not contiguous,
    /// as when it was broadcast from one number, the facade copies it first.
    pub d_out: D,
    /// Gradient of the log-sum-exp, when it is used.
    pub d_lse: Option<L>,
}

/// What a backward call gives, shaped as the inputs.
#[derive(Clone, Copy, Debug)]
pub struct Gradients<T> {
    /// As `query`.
    pub query: T,
    /// As `key`.
    pub key: T,
    /// As `value`.
    pub value: T,
    /// As the additional keys and values.
    pub additional: Option<[T; 2]>,
}

/// Partial results over disjoint sets of keys, to be merged into one softmax; or the gradient of each.
#[derive(Clone, Debug)]
pub struct Partials<V, L> {
    /// Outputs, `[batch, tokens.., heads, head_dim_v]` each.
    pub outs: Vec<V>,
    /// Their log-sum-exps, `[batch, tokens.., heads]` each.
    pub lses: Vec<L>,
}

impl<V> Inputs<V> {
    /// Without additional keys and values.
    pub fn new(query: V, key: V, value: V) -> Self {
        Inputs { query, key, value, additional: None }
    }

    /// With keys and values that every query sees.
    pub fn with_additional(self, keys: V, values: V) -> Self {
        Inputs { additional: Some([keys, values]), ..self }
    }

    /// The gradients of these operands, when these are tensors shaped as they are.
    pub fn into_gradients(self) -> Gradients<V> {
        let Inputs { query, key, value, additional } = self;
        Gradients { query, key, value, additional }
    }
}

/// What [`Inputs`] and [`Gradients`] have in common: four fields of one type.
macro_rules! like_inputs {
    ($name:ident, [$query:ident, $key:ident, $value:ident, $keys:ident, $values:ident]) => {
        impl<V> $name<V> {
            /// References to the same.
            pub fn as_ref(&self) -> $name<&V> {
                let $name { query, key, value, additional } = self;
                $name { query, key, value, additional: additional.as_ref().map(|pair| pair.each_ref()) }
            }

            /// Mutable references to the same.
            pub fn as_mut(&mut self) -> $name<&mut V> {
                let $name { query, key, value, additional } = self;
                $name { query, key, value, additional: additional.as_mut().map(|pair| pair.each_mut()) }
            }

            /// The same in another form, which may borrow from this one.
            pub fn map<'a, W>(&'a self, f: impl FnMut(&'a V) -> W) -> $name<W> {
                self.as_ref().into_map(f)
            }

            /// The same in another form, which may borrow from this one to write.
            pub fn map_mut<'a, W>(&'a mut self, f: impl FnMut(&'a mut V) -> W) -> $name<W> {
                self.as_mut().into_map(f)
            }

            /// The same in another form.
            pub fn into_map<W>(self, mut f: impl FnMut(V) -> W) -> $name<W> {
                let $name { query, key, value, additional } = self;
                let (query, key, value) = (f(query), f(key), f(value));
                $name { query, key, value, additional: additional.map(|pair| pair.map(f)) }
            }

            /// The same in another form, or the first failure. `f` learns the name of each.
            ///
            /// # Errors
            /// Those of `f`.
            pub fn try_map<'a, W, R>(
                &'a self,
                mut f: impl FnMut(Role, &'a V) -> Result<W, R>,
            ) -> Result<$name<W>, R> {
                let $name { query, key, value, additional } = self;
                Ok($name {
                    query: f(Role::$query, query)?,
                    key: f(Role::$key, key)?,
                    value: f(Role::$value, value)?,
                    additional: match additional {
                        Some([keys, values]) => Some([f(Role::$keys, keys)?, f(Role::$values, values)?]),
                        None => None,
                    },
                })
            }

            /// Each with its counterpart; additional ones only where both have them.
            pub fn zip<W>(self, other: $name<W>) -> $name<(V, W)> {
                let additional = self.additional.zip(other.additional);
                $name {
                    query: (self.query, other.query),
                    key: (self.key, other.key),
                    value: (self.value, other.value),
                    additional: additional.map(|([k, v], [l, w])| [(k, l), (v, w)]),
                }
            }

            /// Each with its name.
            pub fn roles(&self) -> impl Iterator<Item = (Role, &V)> {
                let $name { query, key, value, additional } = self;
                let additional = additional.iter().flatten().zip([Role::$keys, Role::$values]);
                [(Role::$query, query), (Role::$key, key), (Role::$value, value)]
                    .into_iter()
                    .chain(additional.map(|(tensor, role)| (role, tensor)))
            }
        }
    };
}

like_inputs!(Inputs, [Query, Key, Value, AdditionalKeys, AdditionalValues]);
like_inputs!(Gradients, [DQuery, DKey, DValue, DAdditionalKeys, DAdditionalValues]);

impl<O, L> Output<O, L> {
    /// References to the same.
    pub fn as_ref(&self) -> Output<&O, &L> {
        Output { out: &self.out, lse: self.lse.as_ref() }
    }

    /// Mutable references to the same.
    pub fn as_mut(&mut self) -> Output<&mut O, &mut L> {
        Output { out: &mut self.out, lse: self.lse.as_mut() }
    }

    /// The same in another form, which may borrow from this one.
    pub fn map<'a, P, M>(
        &'a self,
        of_out: impl FnOnce(&'a O) -> P,
        of_lse: impl FnOnce(&'a L) -> M,
    ) -> Output<P, M> {
        self.as_ref().into_map(of_out, of_lse)
    }

    /// The same in another form, which may borrow from this one to write.
    pub fn map_mut<'a, P, M>(
        &'a mut self,
        of_out: impl FnOnce(&'a mut O) -> P,
        of_lse: impl FnOnce(&'a mut L) -> M,
    ) -> Output<P, M> {
        self.as_mut().into_map(of_out, of_lse)
    }

    /// The same in another form.
    pub fn into_map<P, M>(self, of_out: impl FnOnce(O) -> P, of_lse: impl FnOnce(L) -> M) -> Output<P, M> {
        Output { out: of_out(self.out), lse: self.lse.map(of_lse) }
    }

    /// Each with its counterpart; log-sum-exps only where both have one.
    pub fn zip<P, M>(self, other: Output<P, M>) -> Output<(O, P), (L, M)> {
        Output { out: (self.out, other.out), lse: self.lse.zip(other.lse) }
    }
}

impl<V> Output<V, V> {
    /// Each with its name.
    pub fn roles(&self) -> impl Iterator<Item = (Role, &V)> {
        [(Role::Out, &self.out)].into_iter().chain(self.lse.iter().map(|lse| (Role::Lse, lse)))
    }
}

impl<V, L> Saved<V, L> {
    /// References to the same.
    pub fn as_ref(&self) -> Saved<&V, &L> {
        Saved { out: &self.out, lse: &self.lse, d_out: &self.d_out, d_lse: self.d_lse.as_ref() }
    }

    /// The same in another form, which may borrow from this one.
    pub fn map<'a, W, M>(
        &'a self,
        of_out: impl FnMut(&'a V) -> W,
        of_lse: impl FnMut(&'a L) -> M,
    ) -> Saved<W, M> {
        self.as_ref().into_map(of_out, of_lse)
    }

    /// The same in another form.
    pub fn into_map<W, M>(
        self,
        mut of_out: impl FnMut(V) -> W,
        mut of_lse: impl FnMut(L) -> M,
    ) -> Saved<W, M> {
        let (out, lse) = (of_out(self.out), of_lse(self.lse));
        Saved { out, lse, d_out: of_out(self.d_out), d_lse: self.d_lse.map(of_lse) }
    }

    /// The same in another form, or the first failure. The functions learn the name of each.
    ///
    /// # Errors
    /// Those of the functions.
    pub fn try_map<'a, W, M, R>(
        &'a self,
        mut of_out: impl FnMut(Role, &'a V) -> Result<W, R>,
        mut of_lse: impl FnMut(Role, &'a L) -> Result<M, R>,
    ) -> Result<Saved<W, M>, R> {
        Ok(Saved {
            out: of_out(Role::Out, &self.out)?,
            lse: of_lse(Role::Lse, &self.lse)?,
            d_out: of_out(Role::DOut, &self.d_out)?,
            d_lse: self.d_lse.as_ref().map(|d_lse| of_lse(Role::DLse, d_lse)).transpose()?,
        })
    }

    /// Each with its counterpart; `d_lse` only where both have one.
    pub fn zip<W, M>(self, other: Saved<W, M>) -> Saved<(V, W), (L, M)> {
        Saved {
            out: (self.out, other.out),
            lse: (self.lse, other.lse),
            d_out: (self.d_out, other.d_out),
            d_lse: self.d_lse.zip(other.d_lse),
        }
    }
}

impl<V> Saved<V, V> {
    /// Each with its name.
    pub fn roles(&self) -> impl Iterator<Item = (Role, &V)> {
        [(Role::Out, &self.out), (Role::Lse, &self.lse), (Role::DOut, &self.d_out)]
            .into_iter()
            .chain(self.d_lse.iter().map(|d_lse| (Role::DLse, d_lse)))
    }
}

impl<V, L> Partials<V, L> {
    /// The same in another form, which may borrow from this one.
    pub fn map<'a, W, M>(
        &'a self,
        of_out: impl FnMut(&'a V) -> W,
        of_lse: impl FnMut(&'a L) -> M,
    ) -> Partials<W, M> {
        Partials {
            outs: self.outs.iter().map(of_out).collect(),
            lses: self.lses.iter().map(of_lse).collect(),
        }
    }

    /// The same in another form, which may borrow from this one to write.
    pub fn map_mut<'a, W, M>(
        &'a mut self,
        of_out: impl FnMut(&'a mut V) -> W,
        of_lse: impl FnMut(&'a mut L) -> M,
    ) -> Partials<W, M> {
        Partials {
            outs: self.outs.iter_mut().map(of_out).collect(),
            lses: self.lses.iter_mut().map(of_lse).collect(),
        }
    }

    /// The same in another form.
    pub fn into_map<W, M>(self, of_out: impl FnMut(V) -> W, of_lse: impl FnMut(L) -> M) -> Partials<W, M> {
        Partials {
            outs: self.outs.into_iter().map(of_out).collect(),
            lses: self.lses.into_iter().map(of_lse).collect(),
        }
    }

    /// The same in another form, or the first failure.
    ///
    /// # Errors
    /// Those of the functions.
    pub fn try_map<'a, W, M, R>(
        &'a self,
        of_out: impl FnMut(&'a V) -> Result<W, R>,
        of_lse: impl FnMut(&'a L) -> Result<M, R>,
    ) -> Result<Partials<W, M>, R> {
        Ok(Partials {
            outs: self.outs.iter().map(of_out).collect::<Result<_, _>>()?,
            lses: self.lses.iter().map(of_lse).collect::<Result<_, _>>()?,
        })
    }

    /// Each with its counterpart.
    pub fn zip<W, M>(self, other: Partials<W, M>) -> Partials<(V, W), (L, M)> {
        Partials {
            outs: self.outs.into_iter().zip(other.outs).collect(),
            lses: self.lses.into_iter().zip(other.lses).collect(),
        }
    }
}

impl<V> Partials<V, V> {
    /// Each with its name.
    pub fn roles(&self) -> impl Iterator<Item = (Role, &V)> {
        let outs = self.outs.iter().map(|out| (Role::Out, out));
        outs.chain(self.lses.iter().map(|lse| (Role::Lse, lse)))
    }
}
