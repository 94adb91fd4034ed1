"""Operators that multiply and accumulate nothing, by name: data.

They move, compare, create, draw, reduce one operand, or compute element by element. That a name stands here is a
statement about its semantics: what may multiply belongs into `products.PRODUCTS`, with a formula, and what a version
of PyTorch adds into one of the two.
"""

from __future__ import annotations

NO_PRODUCTS = frozenset(
    """
    __and__ __iand__ __ilshift__ __ior__ __irshift__ __ixor__ __lshift__ __or__ __rshift__ __xor__
    _adaptive_avg_pool2d _adaptive_avg_pool3d _add_relu _aminmax _assert_async _assert_scalar
    _assert_tensor_metadata _autocast_to_full_precision _autocast_to_reduced_precision _batch_norm_impl_index
    _batch_norm_no_update _batch_norm_with_update _batch_norm_with_update_functional _cast_Byte _cast_Char
    _cast_Double _cast_Float _cast_Half _cast_Int _cast_Long _cast_Short _choose_qparams_per_tensor _chunk_cat
    _coalesce _coalesced _conj _conj_copy _conj_physical _convert_weight_to_int4pack
    _convert_weight_to_int4pack_for_cpu _copy_from _copy_from_and_resize _ctc_loss _cummax_helper _cummin_helper
    _debug_has_internal_overlap _dimI _dimV _dim_arange _dirichlet_grad _dyn_quant_pack_4bit_weight
    _efficientzerotensor _empty_affine_quantized _empty_per_channel_affine_quantized
    _fake_quantize_learnable_per_channel_affine _fake_quantize_learnable_per_tensor_affine
    _fake_quantize_per_tensor_affine_cachemask_tensor_qparams _functional_assert_async _functional_assert_scalar
    _functional_sym_constrain_range _functional_sym_constrain_range_for_size _fused_dropout
    _fused_moving_avg_obs_fq_helper _fused_moving_avg_obs_fq_helper_functional _fused_rms_norm _fused_sdp_choice
    _fw_primal _fw_primal_copy _has_compatible_shallow_copy_type _has_same_storage_numel _histogramdd_bin_edges
    _histogramdd_from_bin_cts _histogramdd_from_bin_tensors _index_put_impl _indices _indices_copy _is_all_true
    _is_any_true _is_zerotensor _lazy_clone _linalg_check_errors _local_scalar_dense _log_softmax _logcumsumexp
    _make_dep_token _make_dual _make_dual_copy _masked_scale _masked_softmax _mkldnn_reshape _mkldnn_transpose
    _native_batch_norm_legit _native_batch_norm_legit_functional _native_batch_norm_legit_no_training _neg_view
    _neg_view_copy _new_zeros_with_same_feature_meta _nnz _pack_padded_sequence _pad_circular _pad_enum
    _pad_packed_sequence _pin_memory _prelu_kernel _propagate_xla_data _reshape_alias _reshape_alias_copy
    _reshape_copy _reshape_from_tensor _resize_output _rowwise_prune _safe_softmax _sample_dirichlet
    _saturate_weight_to_fp16 _shape_as_tensor _softmax _stack _standard_gamma _standard_gamma_grad
    _thnn_fused_gru_cell _thnn_fused_lstm_cell _to_copy _to_cpu _to_dense _transform_bias_rescale_qkv _unique
    _unique2 _unpack_dual _unsafe_index _unsafe_index_put _unsafe_masked_index _unsafe_masked_index_put_accumulate
    _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_lanczos2d_aa _upsample_nearest_exact1d
    _upsample_nearest_exact2d _upsample_nearest_exact3d _values _values_copy _version _weight_norm
    _weight_norm_interface abs absolute acos acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d add addcdiv addcmul adjoint alias alias_copy all
    allclose alpha_dropout amax amin aminmax angle any arange arccos arccosh arcsin arcsinh arctan arctan2 arctanh
    argmax argmin argsort argwhere as_strided as_strided_copy as_strided_scatter asin asinh atan atan2 atanh
    atleast_1d atleast_2d atleast_3d avg_pool1d avg_pool2d avg_pool3d bartlett_window batch_norm batch_norm_elemt
    batch_norm_gather_stats batch_norm_gather_stats_with_counts batch_norm_stats batch_norm_update_stats bernoulli
    binary_cross_entropy binary_cross_entropy_with_logits bincount binomial bitwise_and bitwise_left_shift
    bitwise_not bitwise_or bitwise_right_shift bitwise_xor blackman_window block_diag broadcast_tensors broadcast_to
    bucketize can_cast cartesian_prod cat cauchy ccol_indices ccol_indices_copy ceil celu chalf channel_shuffle
    choose_qparams_optimized chunk clamp clamp_max clamp_min clip clone coalesce col2im col_indices col_indices_copy
    column_stack combinations complex concat concatenate conj conj_physical constant_pad_nd contiguous copy copysign
    cos cosh count_nonzero cross cross_entropy_loss crow_indices crow_indices_copy ctc_loss cummax cummin cumprod
    cumsum cumulative_trapezoid data deg2rad dense_dim dequantize detach detach_copy diag diag_embed diagflat
    diagonal diagonal_copy diagonal_scatter diff digamma dim div divide dropout dsplit dstack elu embedding
    embedding_renorm empty empty_like empty_permuted empty_quantized empty_strided eq equal erf erfc erfinv exp exp2
    expand expand_as expand_copy expm1 exponential eye fake_quantize_per_channel_affine
    fake_quantize_per_channel_affine_cachemask fake_quantize_per_tensor_affine
    fake_quantize_per_tensor_affine_cachemask feature_alpha_dropout feature_dropout fft_fftfreq fft_fftshift
    fft_ifftshift fft_rfftfreq fill fill_diagonal fix flatten flatten_dense_tensors flip fliplr flipud
    floor floor_divide fmax fmin fmod frac fractional_max_pool2d fractional_max_pool3d frexp frobenius_norm
    from_file full full_like fused_moving_avg_obs_fake_quant gather gcd ge gelu geometric get_device get_gradients
    glu glu_jvp gradient greater greater_equal group_norm gt hamming_window hann_window hardshrink hardsigmoid
    hardswish hardtanh hash_tensor heaviside hinge_embedding_loss histc histogram histogramdd hsplit hstack
    huber_loss hypot i0 igamma igammac im2col imag index index_add index_copy index_fill index_put index_reduce
    index_select indices indices_copy instance_norm int_repr is_coalesced is_complex is_conj is_contiguous
    is_distributed is_floating_point is_inference is_leaf is_neg is_nonzero is_pinned is_same_size is_set_to
    is_signed isclose isfinite isin isinf isnan isneginf isposinf isreal item kaiser_window kl_div kthvalue l1_loss
    layer_norm lcm ldexp le leaky_relu lerp less less_equal lgamma lift lift_fresh lift_fresh_copy linalg__powsum
    linalg_cross linalg_diagonal linalg_vander linalg_vector_norm linspace log log10 log1p log2 log_normal
    log_sigmoid log_sigmoid_forward log_softmax logaddexp logaddexp2 logcumsumexp logical_and logical_not logical_or
    logical_xor logit logspace logsumexp lt lu_unpack mH mT margin_ranking_loss masked_fill masked_scatter
    masked_select matrix_H max max_pool1d max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d
    max_pool3d_with_indices max_unpool2d max_unpool3d maximum mean median meshgrid min minimum mish
    mkldnn_adaptive_avg_pool2d mkldnn_max_pool2d mkldnn_max_pool3d mode moveaxis movedim mse_loss msort
    multi_margin_loss multilabel_margin_loss multilabel_margin_loss_forward multinomial mvlgamma nan_to_num nanmean
    nanmedian nanquantile nansum narrow narrow_copy native_batch_norm native_channel_shuffle native_dropout
    native_group_norm native_layer_norm native_norm ne neg negative new_empty new_empty_strided new_full new_ones
    new_zeros nextafter nll_loss nll_loss2d nll_loss2d_forward nll_loss_forward nll_loss_nd nonzero nonzero_numpy
    nonzero_static norm norm_except_dim normal normal_functional not_equal numel numpy_T one_hot ones ones_like
    output_nr pad pad_sequence permute permute_copy pin_memory pixel_shuffle pixel_unshuffle poisson
    poisson_nll_loss polar polygamma positive prelu prod promote_types put q_per_channel_axis
    q_per_channel_scales q_per_channel_zero_points q_scale q_zero_point qscheme quantile quantize_per_channel
    quantize_per_tensor quantize_per_tensor_dynamic rad2deg rand rand_like randint randint_like randn randn_like
    random randperm range ravel real reciprocal record_stream reflection_pad1d reflection_pad2d reflection_pad3d
    relu relu6 remainder renorm repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d
    requires_grad reshape reshape_as resize resize_as resolve_conj resolve_neg result_type retain_grad retains_grad
    rms_norm roll rot90 round row_indices row_indices_copy row_stack rrelu rrelu_with_noise
    rrelu_with_noise_functional rsqrt rsub scalar_tensor scatter scatter_add scatter_reduce searchsorted
    segment_reduce select select_copy select_scatter selu set set_data sgn sigmoid sign signbit silu sin sinc sinh
    size slice slice_copy slice_inverse slice_scatter smooth_l1_loss soft_margin_loss softmax softplus softshrink
    sort special_airy_ai special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1
    special_chebyshev_polynomial_t special_chebyshev_polynomial_u special_chebyshev_polynomial_v
    special_chebyshev_polynomial_w special_digamma special_entr special_erf special_erfc special_erfcx
    special_erfinv special_exp2 special_expit special_expm1 special_gammainc special_gammaincc special_gammaln
    special_hermite_polynomial_h special_hermite_polynomial_he special_i0 special_i0e special_i1 special_i1e
    special_laguerre_polynomial_l special_legendre_polynomial_p special_log1p special_log_ndtr special_log_softmax
    special_logit special_logsumexp special_modified_bessel_i0 special_modified_bessel_i1 special_modified_bessel_k0
    special_modified_bessel_k1 special_multigammaln special_ndtr special_ndtri special_polygamma special_psi
    special_round special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1
    special_shifted_chebyshev_polynomial_t special_shifted_chebyshev_polynomial_u
    special_shifted_chebyshev_polynomial_v special_shifted_chebyshev_polynomial_w special_sinc special_softmax
    special_spherical_bessel_j0 special_xlog1py special_xlogy special_zeta split split_copy split_with_sizes
    split_with_sizes_copy sqrt squeeze squeeze_copy stack std std_mean storage_offset stride sub subtract sum
    sum_to_size swapaxes swapdims sym_constrain_range sym_constrain_range_for_size sym_is_contiguous sym_numel
    sym_size sym_storage_offset sym_stride t t_copy take take_along_dim tan tanh tensor_split threshold tile to
    to_dense to_mkldnn to_padded_tensor topk torchvision::nms torchvision::ps_roi_pool torchvision::roi_pool trace
    transpose transpose_copy trapezoid trapz tril tril_indices triu triu_indices true_divide trunc type_as unbind
    unbind_copy unflatten unflatten_dense_tensors unfold unfold_copy uniform unique_consecutive unique_dim
    unique_dim_consecutive unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze unsqueeze_copy
    upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d upsample_trilinear3d values values_copy vander var var_mean view view_as view_as_complex
    view_as_complex_copy view_as_real view_as_real_copy view_copy vsplit vstack where xlogy zero zeros zeros_like
""".split()
)
"""Names of ATen operators without overload; those of other libraries as `library::name`."""
