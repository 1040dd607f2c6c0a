"""Operations on pictures, each marked `@register("transform")`, and the pipeline that runs them."""
