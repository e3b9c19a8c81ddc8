"""What the page says, in English and Japanese. ``{names}`` are filled in; each stands in both languages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """One language of the page."""

    language: str
    title: str
    about: str
    see: str
    read: str
    carry_on: str
    answer: str
    see_help: str
    read_help: str
    carry_on_help: str
    answer_help: str
    description: str
    description_hint: str
    beginning: str
    beginning_hint: str
    words_too: str
    examples: str
    held_out: str
    upload: str
    upload_help: str
    shown: str
    go_see: str
    go_read: str
    go_carry_on: str
    go_answer: str
    stop: str
    sampling: str
    temperature: str
    temperature_help: str
    top_p: str
    top_p_help: str
    number: str
    frames: str
    frames_help: str
    later_frames: str
    seed: str
    length: str
    imagine: str
    legend_text: str
    legend_frames: str
    bits: str
    per_byte: str
    per_frame: str
    end: str
    given: str
    continued: str
    really: str
    caption: str
    said: str
    imagined: str
    story: str
    told: str
    waiting: str
    working: str
    done: str
    stopped: str
    full: str
    too_long: str
    no_text: str
    long_text: str
    nothing_shown: str
    forgotten: str
    bad_file: str
    bad_value: str
    no_sight: str
    failed: str


ENGLISH = Words(
    language="en",
    title="Quadrivium: four routes between text and vision",
    about="{name} · step {step:,} · {size:.1f}M parameters",
    see="See",
    read="Read",
    carry_on="Continue",
    answer="Answer",
    see_help="Write what there is to see; the model draws it.",
    read_help="Show a picture or a clip; the model says what it sees.",
    carry_on_help="Show how it begins; the model draws what comes next.",
    answer_help="Write a beginning or a question; the model goes on. Underneath: what it imagines, and what it reads off its own pictures.",
    description="What is there to see?",
    description_hint="a red ball on a ramp",
    beginning="How does it begin?",
    beginning_hint="The red ball rolls down the ramp and",
    words_too="Words to go with it (optional)",
    examples="Examples the model never trained on",
    held_out="Clip {number}",
    upload="Choose a picture or video",
    upload_help="Up to {megabytes:g} MB. The model reads {size} × {size} pixels and, of a video, the first {frames} frames ({seconds:.1f} s).",
    shown="What the model is shown",
    go_see="Draw",
    go_read="Read",
    go_carry_on="Continue",
    go_answer="Answer",
    stop="Stop",
    sampling="Sampling",
    temperature="Temperature",
    temperature_help="0: always the likeliest",
    top_p="Top p",
    top_p_help="keep the likeliest choices that hold this share",
    number="Samples",
    frames="Frames",
    frames_help="1: a still picture",
    later_frames="Frames to add",
    seed="Seed",
    length="Longest text, in tokens",
    imagine="Imagine it too",
    legend_text="Bits of each token, as the line under it:",
    legend_frames="Bits of each visual token, as the map under each frame:",
    bits="{bits:,.0f} bits",
    per_byte="{bits:.2f} bits per byte",
    per_frame="{bits:,.0f} bits per frame",
    end="end of text",
    given="Given",
    continued="What comes next",
    really="What really came next",
    caption="The caption that was written for it",
    said="Text alone",
    imagined="Imagined",
    story="The text, after looking at it",
    told="What is seen in it",
    waiting="Waiting; {before} before you.",
    working="Working… {seconds:.0f} s",
    done="Done in {seconds:.1f} s.",
    stopped="Stopped.",
    full="Many people are asking just now. Please try again in a moment.",
    too_long="That took longer than {seconds:g} s and was stopped. Ask for fewer samples or frames, or a shorter text.",
    no_text="Write something first.",
    long_text="The text is too long; {most:,} characters are the most.",
    nothing_shown="Choose an example, or upload a picture or video first.",
    forgotten="That upload has been forgotten by now. Please upload it again.",
    bad_file="{name} cannot be used: {reason}.",
    bad_value="A slider stands where it cannot; reload the page.",
    no_sight="This model was trained on text alone: it neither reads nor draws pictures.",
    failed="Something went wrong here, not with you. The terminal says what.",
)

JAPANESE = Words(
    language="ja",
    title="Quadrivium：ことばと映像をつなぐ四つの道",
    about="{name} ・ {step:,} ステップ ・ パラメータ {size:.1f}M",
    see="描く",
    read="読みとる",
    carry_on="続ける",
    answer="答える",
    see_help="見たいものを文章で書くと、モデルが絵にします。",
    read_help="画像や動画を見せると、何が写っているかをことばにします。",
    carry_on_help="始まりを見せると、その先を描きます。",
    answer_help="書き出しや質問を入力すると、続きを書きます。その下に、モデルが思い浮かべた映像と、そこから読みとったことを表示します。",
    description="何を描きますか",
    description_hint="坂の上に赤い玉がある。",
    beginning="書き出し・質問",
    beginning_hint="坂の上の赤い玉が転がりだすと、",
    words_too="添えることば（任意）",
    examples="学習に使っていない例",
    held_out="例 {number}",
    upload="画像・動画を選ぶ",
    upload_help="{megabytes:g} MB まで。モデルは {size}×{size} 画素で見ます。動画は最初の {frames} コマ（{seconds:.1f} 秒）を使います。",
    shown="モデルに見せるもの",
    go_see="描く",
    go_read="読みとる",
    go_carry_on="続きを描く",
    go_answer="答える",
    stop="中止",
    sampling="生成の設定",
    temperature="温度",
    temperature_help="0 にすると、いつも最もありそうなものを選びます",
    top_p="Top p",
    top_p_help="ありそうな順に、合計がこの割合になるまでの候補から選びます",
    number="生成する数",
    frames="コマ数",
    frames_help="1 なら静止画",
    later_frames="描き足すコマ数",
    seed="シード",
    length="文章の最大トークン数",
    imagine="映像も思い浮かべる",
    legend_text="文字の下の線：トークンごとのビット数",
    legend_frames="コマの下の図：視覚トークンごとのビット数",
    bits="{bits:,.0f} ビット",
    per_byte="1 バイトあたり {bits:.2f} ビット",
    per_frame="1 コマあたり {bits:,.0f} ビット",
    end="文章の終わり",
    given="見せたもの",
    continued="続き",
    really="実際の続き",
    caption="データに付いていた説明文",
    said="ことばだけの答え",
    imagined="思い浮かべた映像",
    story="映像を見てからの続き",
    told="映像から読みとったこと",
    waiting="順番を待っています（あと {before} 人）",
    working="生成しています… {seconds:.0f} 秒",
    done="完了（{seconds:.1f} 秒）",
    stopped="中止しました。",
    full="ただいま混み合っています。しばらくしてからもう一度お試しください。",
    too_long="{seconds:g} 秒を超えたため中止しました。生成する数やコマ数を減らすか、文章を短くしてください。",
    no_text="文章を入力してください。",
    long_text="文章が長すぎます。{most:,} 文字以内にしてください。",
    nothing_shown="例を選ぶか、画像・動画をアップロードしてください。",
    forgotten="アップロードの保存期間が過ぎました。もう一度アップロードしてください。",
    bad_file="「{name}」を読みこめません。画像か動画であること、壊れていないことを確認してください（{reason}）。",
    bad_value="設定の値が正しくありません。ページを読み込み直してください。",
    no_sight="このモデルは文章だけで学習したため、画像の読みとりや描画はできません。",
    failed="内部でエラーが起きました。詳しくは端末の表示を確認してください。",
)
