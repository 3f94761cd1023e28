"""The core: evaluation of a jaxpr jointly on an input and its reference. It knows no primitive, no rule and no method.

Read it in this order: values.py (what is carried for a value), interpreter.py (the loop over equations), table.py (what
is done with each primitive), custom_derivatives.py (where a derivative is replaced by a multiplier). versions.py has
what differs between JAX versions, compilers.py what is written for a compiler's sake.

The words of this library:

- reference, difference-from-reference: what the input is compared with, and the input's value less the reference's, `D
  = x - r`, of any value in the program.
- multiplier: contribution per unit of difference, in the place of a derivative (paper, section 3.2). Multipliers are
  the derivative of the joint evaluation; a cotangent, in a backward pass, is the multiplier of what follows.
- contribution: multiplier times difference. Contributions sum to the difference of the outputs: summation-to-delta.
- parts, variation: positive and negative part of a difference, `D = D+ + D-`, and `a = D+ - D-`, which is carried.
- rule: how a change passes a map. Family: the kind of map (`jaxlift.rules.families`).
- primal, residual: in a custom derivative, what is computed forwards, and what is kept for the backward pass. The
  *explained* operands are those to which multipliers lead; the *held* ones are constants to them.
- varying: depending on the explained input. *Pending*: varying, and so far an elementwise function of one varying
  value, to which no rule was applied yet. To *settle* it is to apply the rule in force.
- masked: with infinite numbers where the data says, as logits before a softmax. What such a choice changes is explained
  with a large number in the place of each, which *stands for* it.
- carrier: the array whose derivative in the explained input is a value's multiplier: the value itself, or for integers
  and truth values, which have no derivative, a number beside it.
- ends, sides: a value at the input and at the reference. *Alone*: without a reference, under a rule that needs none.
- form: a pointwise function but for its constants, so that equal ones are traced once.
- fraction: what a value is that was computed as a reciprocal, `c / S` with a constant `c`, so that products with it are
  known to be quotients.
- origin: what a value remembers of how it was made, so that a larger map can be recognised (softmax, a bias added).
"""
